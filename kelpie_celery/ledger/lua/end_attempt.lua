-- Ends an attempt and decides what becomes of its job.
-- ARGV: 1 id, 2 attempt, 3 nonce, 4 outcome (completed | failure | free | interruption | continue | canceled), 5 reason,
--       6 message, 7 result (JSON; of a completed job), 8 facts for the history (JSON object, '' = none),
--       9 delay before a retry (s), 10 final ('1' = a failure that is not retried), 11 outbox lease (s),
--       12 retention (s), 13 ban time of the machine after a failure (s, 0 = none),
--       14 free ends in a row that do not count, 15 longest delay (s), 16 and on: new output, as _output.lua has it
-- Returns {status of the job now, num_failures} | {'cancel'} | {'stale', status}
--   'cancel': completion is refused because a cancel was accepted before; end it as canceled.
-- A free end is a failure that does not count to max_failures: the delay doubles with each in a row, and those beyond
-- ARGV 14 without a new commit count all the same.
-- Invariant: takes effect once; asked again by the same attempt (the answer was lost), it answers the same, unless the
-- job has moved on since: then nothing may be told of it that Celery would take for the latest news.
local id, attempt, nonce, outcome = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not find(id) then return {'stale', 'unknown'} end
local key = job_key(id)
if not owns(id, attempt, nonce) and not take_back(id, attempt, nonce) then
  local r = redis.call('HMGET', key, 'released', 'released_as', 'num_failures', 'status')
  if r[1] == nonce and r[2] == r[4] then return {r[2], r[3] or '0'} end
  return {'stale', r[4]}
end
local cancel = redis.call('HGET', key, 'cancel')
if cancel and outcome == 'completed' then return {'cancel'} end
put_output(id, attempt, 16)
local outbox_s, retention_s = num(ARGV[11]), num(ARGV[12])
local message, delay_s = ARGV[6], num(ARGV[9])
if outcome == 'free' and not cancel then
  -- A commit begins the row anew, also one of an attempt that was interrupted (commit.lua).
  local row = redis.call('HINCRBY', key, 'free_row', 1)
  if row > num(ARGV[14]) then
    outcome = 'failure'
    message = message .. '; it counts, as the ' .. ARGV[14] .. ' before it in a row were free and no new checkpoint came'
  else
    redis.call('HINCRBY', key, 'num_free', 1)
  end
  delay_s = math.min(delay_s * 2 ^ math.min(row - 1, 30), math.max(delay_s, num(ARGV[15])))
end
close_attempt(id, outcome, ARGV[5], message, ARGV[8], now)
add_run(id, now)
redis.call('HDEL', key, 'deaths')

-- A machine's streak is the number of jobs in a row that failed on it and were completed by others: it says that the fault
-- is the machine's, and not theirs.
local function blame_machine(id)
  local failed_on = cjson.decode(get(id, 'failed_on') or '{}')
  failed_on[get(id, 'machine') or ''] = ts(now)
  redis.call('HSET', key, 'failed_on', cjson.encode(failed_on))
end

local function judge_machines(id)
  local here = get(id, 'machine') or ''
  redis.call('ZREM', P .. 'streaks', here)
  redis.call('ZADD', P .. 'succeeded', ts(now), here)
  for machine, at in pairs(cjson.decode(get(id, 'failed_on') or '{}')) do
    if machine ~= here and num(at) > num(redis.call('ZSCORE', P .. 'succeeded', machine)) then
      redis.call('ZINCRBY', P .. 'streaks', 1, machine)
      redis.call('EXPIRE', P .. 'streaks', 604800)
    end
  end
end

local function answer(status)
  redis.call('HSET', key, 'released', nonce, 'released_as', status)
  return {status, get(id, 'num_failures') or '0'}
end
if outcome == 'completed' then
  judge_machines(id)
  redis.call('HINCRBY', key, 'completions', 1)
  finish(id, 'completed', '', '', ARGV[7], outbox_s, retention_s)
  return answer('completed')
end
if outcome == 'canceled' or cancel then
  finish(id, 'canceled', 'canceled', cancel or ARGV[6], 'null', outbox_s, retention_s)
  return answer('canceled')
end
if outcome == 'failure' or outcome == 'free' then
  redis.call('HSET', key, 'reason', ARGV[5], 'message_text', message)
  if num(ARGV[13]) > 0 then ban(id, get(id, 'machine'), num(ARGV[13])) end
end
if outcome == 'failure' then
  blame_machine(id)
  local failures = redis.call('HINCRBY', key, 'num_failures', 1)
  if ARGV[10] == '1' or failures >= num(get(id, 'max_failures')) then
    finish(id, 'failed', ARGV[5], message, 'null', outbox_s, retention_s)
    return answer('failed')
  end
elseif outcome == 'interruption' then
  redis.call('HINCRBY', key, 'num_interruptions', 1)
elseif outcome == 'continue' then
  redis.call('HINCRBY', key, 'continues', 1)
end
redis.call('ZREM', P .. 'running', id)
enqueue(id, delay_s)
-- The hint goes out by publish.lua once Celery has recorded the retry. Should that never come, the reconciler finds
-- this entry: published long ago, and in no list.
if delay_s <= 0 then redis.call('ZADD', P .. 'published:' .. get(id, 'priority'), ts(now), id) end
return answer('pending')
