-- The last lines that a job's command wrote: P output:<id>, and in its record 'output': <attempt>:<lines that it wrote so far>.
--
-- Takes an attempt's new lines: ARGV[at] is how many of its last lines there are to be then, ARGV[at + 1] the number of the
-- last one (it counts from 1), what follows are the lines. Nothing follows where nothing is new. Invariants: told again (the
-- answer was lost) nothing comes twice; lines follow each other without a gap, so those before one are dropped, and those of
-- an earlier attempt with the first line of the next one. The bounds are kept here too, whatever a worker says.
local MOST_LINES = 200
local function put_output(id, attempt, at)
  local new = #ARGV - at - 1
  if new < 1 or new > MOST_LINES then return end
  local key, last = P .. 'output:' .. id, num(ARGV[at + 1])
  local of, known = string.match(get(id, 'output') or '', '^(%d+):(%d+)$')
  local first = last - new + 1
  if of ~= attempt or num(known) < first - 1 then
    redis.call('DEL', key)
    known = first - 1
  end
  for number = math.max(first, num(known) + 1), last do
    redis.call('RPUSH', key, ARGV[at + 2 + number - first])
  end
  redis.call('LTRIM', key, -math.max(1, math.min(num(ARGV[at]), MOST_LINES)), -1)
  redis.call('HSET', job_key(id), 'output', attempt .. ':' .. string.format('%d', math.max(last, num(known))))
end
