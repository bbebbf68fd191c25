-- Makes an older commit the newest state again: a new commit with its file list becomes the head of every line.
-- ARGV: 1 id, 2 id of the older commit, 3 fresh nonce, 4 expiry of a line (s), 5 commits (as in commit.lua)
-- Returns {'ok', {now, {holder, lives, generation, kept, dropped} for each line}} | {'unknown'} no such job
--       | {'held', number of the line, job} | {'gone', number of the line}  the older commit is not kept
--       | {'moved', number of the line, job}  its generation is not below the new commit's
--   but for 'ok' nothing has changed.
-- Invariants: a running attempt is fenced for ever, and its job is pending, neither interrupted nor failed; nobody can
-- claim it before the fenced attempt's lease is over, since until it hears of the rollback that one still trusts it. An
-- attempt that the reaper took the job from cannot take it back. An ended job stays what it is; one that is being canceled
-- ends as such, and its last commit is refused. Asked again (the answer was lost), it changes nothing.
local id, nonce = ARGV[1], ARGV[3]
if not find(id) then return {'unknown'} end
local key = job_key(id)
local r = redis.call('HMGET', key, 'status', 'attempt', 'cancel')
local status = r[1]
if not status or status == 'draft' then return {'unknown'} end

local given, lines, done = cjson.decode(ARGV[5]), {}, 0
for i, one in ipairs(given) do
  lines[i] = read_line(one.line)
  if holds(lines[i].kept, one.commit.id) then done = done + 1 end
end
if done == #given then return {'ok', pictures(lines)} end
for i, one in ipairs(given) do
  local line = lines[i]
  if held_against(line, id) then return {'held', i, line.holder} end
  if not holds(line.kept, ARGV[2]) then return {'gone', i} end
  if one.commit.generation <= line.generation then return {'moved', i, line.head.job} end
end

local attempt = r[2] or '0'
if status == 'running' and not r[3] then
  close_attempt(id, 'continue', 'rolled_back', 'its job was rolled back to checkpoint ' .. ARGV[2], '', now)
  add_run(id, now)
  attempt = tostring(redis.call('HINCRBY', key, 'attempt', 1))
  redis.call('HSET', key, 'nonce', nonce)
  redis.call('HDEL', key, 'deaths')
  local left_s = num(redis.call('ZSCORE', P .. 'running', id)) - now
  redis.call('ZREM', P .. 'running', id)
  enqueue(id, left_s)
  if left_s <= 0 then publish(id) end
elseif status == 'pending' then
  redis.call('HDEL', key, 'reaped')
end
note_lines(id, lines)
for i, one in ipairs(given) do advance(lines[i], one, id, attempt, nonce, ARGV[4]) end
return {'ok', pictures(lines)}
