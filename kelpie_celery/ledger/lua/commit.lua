-- Records what an attempt made durable: moves the heads of all its lines together, or none of them.
-- ARGV: 1 id, 2 attempt, 3 nonce, 4 pointer (JSON; what the job's record shows), 5 expiry of a line (s),
--       6 commits (JSON list of {line = digest, endpoint, bucket, prefix, base = id of the head that the attempt restored
--         from ('' = none), commit}; '[]' = the storage side needs no line)
-- Returns {'ok', {now, {holder, lives, generation, kept, dropped} for each line}}
--       | {'lost', status}          the attempt does not own the job
--       | {'held', number of the line, job}   another job that may still commit holds it
--       | {'moved', number of the line, job}  its head is neither this attempt's nor what it restored from, or is newer
--   but for 'ok' nothing has changed, and nothing may follow from this commit.
-- Invariant: an attempt goes on from its own commit or from the head that it restored, never from anything else: extents
-- that it took over may be deleted since. Asked again (the answer was lost, or a call came late), it changes nothing.
local id, attempt, nonce = ARGV[1], ARGV[2], ARGV[3]
if not find(id) then return {'lost', 'unknown'} end
local owner = owns(id, attempt, nonce)
if not owner and not may_take_back(id, attempt, nonce) then return {'lost', get(id, 'status') or 'unknown'} end

local given, lines, heads, repeats = cjson.decode(ARGV[6]), {}, 0, 0
for i, one in ipairs(given) do
  local line = read_line(one.line)
  if held_against(line, id) then return {'held', i, line.holder} end
  local head = line.head
  local mine = head and head.job == id and head.attempt == attempt and head.nonce == nonce
  if mine and head.id == one.commit.id then
    heads = heads + 1
  elseif mine and holds(line.kept, one.commit.id) then
    repeats = repeats + 1
  elseif head and (one.commit.generation <= line.generation or not mine and head.id ~= one.base) then
    return {'moved', i, head.job}
  end
  lines[i] = line
end
-- A late repeat of a commit that others followed must not move those lines that have forgotten it.
if repeats > 0 and heads + repeats < #given then return {'moved', 1, id} end

if not owner then take_back(id, attempt, nonce) end
local before = redis.call('HMGET', job_key(id), 'commit', 'committed_in')
local known = #given == 0 and before[1] == ARGV[4] and before[2] == attempt
if known or #given > 0 and heads + repeats == #given then return {'ok', pictures(lines)} end
for i, one in ipairs(given) do
  if not lines[i].head or lines[i].head.id ~= one.commit.id then advance(lines[i], one, id, attempt, nonce, ARGV[5]) end
end
note_lines(id, lines)
redis.call('HSET', job_key(id), 'commit', ARGV[4], 'committed_in', attempt, 'committed_at', ts(now))
redis.call('HDEL', job_key(id), 'free_row')
-- It holds the files as they were when it began.
local took_s = cjson.decode(ARGV[4]).seconds
account_useful(id, now - math.max(0, type(took_s) == 'number' and took_s or 0))
redis.call('HINCRBY', job_key(id), 'num_commits', 1)
redis.call('HINCRBY', job_key(id), 'attempt_commits', 1)
return {'ok', pictures(lines)}
