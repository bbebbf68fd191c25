-- Marks drained workers as SaladCloud's to delete, before it is asked to: none of them claims again meanwhile. Before a stop
-- the whole group is closed as well: a worker that comes up late would claim a job and die with it.
-- ARGV: 1 group, 2 at most how many, 3 a worker counts if heard of within (s), 4 by what ('shrink' | 'stop'),
--       5 how long SaladCloud may take (s), 6 at least how many
-- Returns {'1' | '0' nothing was changed, how many were marked, workers that were not, jobs that run, now, exposed: busy ones
--          that SaladCloud may take for drained ones}
--   Nothing is changed where there are fewer than the least, where a shrink might take an exposed one, or where something else than drained workers would be stopped.
-- Invariant: only workers that drain and hold no job; for a shrink, only those that know of it, as SaladCloud picks by the
--   cost that they have told. A stop ends all, so one that vanished a moment ago, and will never tell, does not hold it up.
P = 'kelpie:g:' .. ARGV[1] .. ':'
local most, stop, ready, others, exposed = num(ARGV[2]), ARGV[4] == 'stop', {}, 0, 0
for _, w in ipairs(read_fleet(num(ARGV[3]))) do
  if w.busy and w.untold and not w.condemned then exposed = exposed + 1 end
  if #ready < most and w.draining and (w.settled or stop) and not w.busy and not w.condemned then
    ready[#ready + 1] = w
  elseif not w.condemned then
    others = others + 1
  end
end
local running = redis.call('ZCOUNT', P .. 'running', ts(now), '+inf')
local left = #ready < num(ARGV[6]) or stop and (others > 0 or running > 0) or not stop and exposed > 0
if left then return {'0', 0, others, running, ts(now), exposed} end
local till = ts(now + num(ARGV[5]))
for _, w in ipairs(ready) do
  redis.call('HSET', worker_key(w.id), 'condemned', ts(now), 'condemned_by', ARGV[4], 'draining', till)
end
if stop then redis.call('HSET', P .. 'scaler', 'closed', till) end
return {'1', #ready, others, running, ts(now), exposed}
