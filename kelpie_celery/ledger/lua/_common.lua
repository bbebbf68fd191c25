-- Shared by every operation: it is put in front of the operation's own file.
--
-- Time is the server's own (TIME), in seconds as a number; stored with six decimals.
-- Keys (kelpie_celery/ledger/keys.py owns their names, types and lifetimes), P = kelpie:g:<group>:
--   kelpie:where:<id>   string  the group of a job          P job:<id>       hash  the record
--   P attempts:<id>     list    the last 50 attempts (JSON) P pending        zset  priority, then age
--   P running           zset    lease expiry                P delayed        zset  due time
--   P ended             zset    end time                    P outbox         zset  next replay time
--   P published:<0-9>   zset    time of the last message    P watermark      hash  newest message received, by priority
--   P created           zset    creation time               P counts         hash  ended jobs by status
--   P machines          zset    last sign of life           P tick           hash  state of the maintenance
--   P webhooks          zset    <id>:<status>, due time     P webhooks_dead  zset  the same, given up at
--   P outbox_left       zset    as outbox: those for a caller with more rights than the group's own workers
--   P leftover          zset    what a user of this group alone may not do, when due; see tick.lua
--   P idem:<digest>     string  job id of an idempotency key
--   P workers           zset    last sign of life           P worker:<w>     hash  a worker; see _fleet.lua
--   P streaks           zset    machines: jobs in a row     P succeeded      zset  machines: time of the last success
--   P moves             zset    instances moved, by time    P decisions      list  the scaler's last decisions (JSON)
--   P machine:<m>       hash    what a machine did          P bans:<m>       zset  jobs that it may not have: till when
--   P scaler            hash    what the scaler remembers   kelpie:bucket:<n>  string  when a bucket of tokens is full
--   P stats:<day>       hash    sums by hour: <hour>:<what>  P totals        hash  the same since ever: <what>
--   P output:<id>       list    the last lines of output; see _output.lua
--   kelpie:line:<digest of endpoint, bucket, prefix>  hash  the commits of one checkpoint prefix; see _lines.lua
-- Queue lists are the broker's (kombu): kelpie.<group> for priority 0, kelpie.<group>:<priority> for the others.

local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
local P = ''

local function ts(x) return string.format('%.6f', x) end
local function num(x) return tonumber(x or '0') or 0 end
local function job_key(id) return P .. 'job:' .. id end
local function get(id, field) return redis.call('HGET', job_key(id), field) end

-- Sets P to the prefix of the job's group; nil when no such job is known.
local function find(id)
  local group = redis.call('GET', 'kelpie:where:' .. id)
  if not group then return nil end
  P = 'kelpie:g:' .. group .. ':'
  return group
end

local function ended(status) return status == 'completed' or status == 'failed' or status == 'canceled' end

-- The fencing check: is this attempt, told by number and nonce, the one that runs the job?
local function owns(id, attempt, nonce)
  local r = redis.call('HMGET', job_key(id), 'status', 'attempt', 'nonce')
  return r[1] == 'running' and r[2] == attempt and r[3] == nonce
end

-- The group of the keys that are worked on.
local function this_group() return string.match(P, '^kelpie:g:(.*):$') end

-- Puts a hint on the group's queue. The delivery tag carries the time, which is the reconciler's watermark. The group's
-- workers may have written anything into the record: it names no queue, as a maintainer may write to every one.
local function publish(id)
  local r = redis.call('HMGET', job_key(id), 'message', 'priority')
  local priority = math.floor(num(r[2]))
  local queue = 'kelpie.' .. this_group() .. (priority >= 1 and priority <= 9 and ':' .. string.format('%d', priority) or '')
  local at = string.find(r[1], '@KELPIE_TAG@', 1, true)
  local tag = ts(now) .. '.' .. id
  redis.call('LPUSH', queue, string.sub(r[1], 1, at - 1) .. tag .. string.sub(r[1], at + 12))
  redis.call('ZADD', P .. 'published:' .. r[2], ts(now), id)
end

local function leave_queue(id)
  redis.call('ZREM', P .. 'pending', id)
  redis.call('ZREM', P .. 'delayed', id)
  redis.call('ZREM', P .. 'published:' .. (get(id, 'priority') or '0'), id)
end

-- Makes the job pending, due after delay_s. Publishing is the caller's. Its wait counts from when it is due: a ban must
-- not have yielded by the time that the retry delay is over.
local function enqueue(id, delay_s)
  local priority = num(get(id, 'priority'))
  redis.call('HSET', job_key(id), 'status', 'pending', 'phase', '', 'pending_since', ts(now + math.max(0, delay_s)),
    'bounces', 0)
  if delay_s > 0 then
    redis.call('ZADD', P .. 'delayed', ts(now + delay_s), id)
  else
    redis.call('ZADD', P .. 'pending', ts(priority * 100000000000 + now), id)
  end
end

-- Counts what a machine did, for people; forgotten a week after its last attempt's end. Nothing is decided by it.
local function note_machine(machine, field, by)
  if not machine or machine == '' then return end
  local key = P .. 'machine:' .. machine
  redis.call('HINCRBYFLOAT', key, field, string.format('%.6f', by))
  redis.call('HSET', key, 'at', ts(now))
  redis.call('EXPIRE', key, 604800)
end

-- Adds to the sums of this hour and to those since ever; what each means is in kelpie_celery/ledger/sums.py. The caller
-- has changed the record in this very call, so that a call which is made again adds nothing. Sums that the group's workers
-- spoilt are left as they are: no transition may end half-way for their sake.
local STATS_KEPT_S = 90 * 86400
local function add_sums(sums, hour, sign)
  local key = P .. 'stats:' .. string.format('%d', math.floor(hour / 24))
  local within = string.format('%d', hour % 24) .. ':'
  local any = false
  for what, by in pairs(sums) do
    local change = string.format('%.6f', (sign or 1) * by)
    if tonumber(change) ~= 0 then
      redis.pcall('HINCRBYFLOAT', key, within .. what, change)
      redis.pcall('HINCRBYFLOAT', P .. 'totals', what, change)
      any = true
    end
  end
  if any then redis.call('EXPIRE', key, STATS_KEPT_S) end
end

local function account(sums) add_sums(sums, math.floor(now / 3600)) end

-- A pending job waits no more.
local function account_wait(id) account({waiting_s = math.max(0, now - num(get(id, 'pending_since')))}) end

-- What the command did up to a moment will not be done again: a commit holds it. Counted at once, not at the attempt's
-- end, which may be days away.
local function account_useful(id, till)
  local r = redis.call('HMGET', job_key(id), 'launched_at', 'counted_till')
  if not r[1] then return end
  local from = math.max(num(r[1]), num(r[2]))
  if till <= from then return end
  account({useful_s = till - from})
  redis.call('HSET', job_key(id), 'counted_till', ts(till))
end

-- Takes an attempt's time apart at its end: restoring until the launch, then executing until execute_s (as its worker
-- timed it) or what the record tells, then syncing; silent from its last sign of life, till, on. What was executed since the
-- last commit is lost, but for a job that completed. Where the last commit was made after the exit, more was taken for
-- useful than was executed: that was syncing.
local function time_of_attempt(id, completed, till, execute_s)
  local r = redis.call('HMGET', job_key(id), 'attempt_started', 'launched_at', 'exited_at', 'counted_till')
  till = math.min(till, now)
  local started = math.min(r[1] and num(r[1]) or till, till)
  if not r[2] then return {restoring_s = till - started, silent_s = now - till} end
  local launched = math.max(started, math.min(num(r[2]), till))
  local over = execute_s and launched + execute_s or r[3] and num(r[3]) or till
  over = math.max(launched, math.min(over, till))
  local left = over - math.max(launched, num(r[4]))
  local useful = completed or left < 0
  return {restoring_s = launched - started, [useful and 'useful_s' or 'lost_s'] = left, syncing_s = till - over,
    silent_s = now - till}, over - launched
end

-- Nobody else claimed the job since the reaper took it from this attempt.
local function may_take_back(id, attempt, nonce)
  local r = redis.call('HMGET', job_key(id), 'status', 'attempt', 'nonce', 'reaped')
  return r[1] == 'pending' and r[2] == attempt and r[3] == nonce and r[4] == '1'
end

-- Adds to the job's running time what its attempt's command ran up to a moment, or takes that off again (sign -1). The
-- final upload is no part of it: a storage that is away must not use up the job's total_timeout.
local function add_run(id, till, sign)
  local r = redis.call('HMGET', job_key(id), 'launched_at', 'exited_at')
  if not r[1] then return end
  local seconds = math.max(0, math.min(till, r[2] and num(r[2]) or till) - num(r[1]))
  redis.call('HINCRBYFLOAT', job_key(id), 'ran_s', ts((sign or 1) * seconds))
end

-- Takes off again what the reaper counted; text is what it left of that in the record.
local function uncount(text)
  local settled = cjson.decode(text)
  add_sums(settled.sums, settled.hour, -1)
end

-- The attempt has its job back, and was not interrupted.
local function take_back(id, attempt, nonce)
  if not may_take_back(id, attempt, nonce) then return false end
  local r = redis.call('HMGET', job_key(id), 'lease_s', 'heartbeat_at')
  local settled = get(id, 'settled')
  leave_queue(id)
  redis.call('HSET', job_key(id), 'status', 'running')
  if settled then pcall(uncount, settled) end
  redis.call('HDEL', job_key(id), 'reaped', 'deaths', 'settled')
  redis.call('HINCRBY', job_key(id), 'num_interruptions', -1)
  -- Counted as its running time when it was reaped; it will be counted whole at its end.
  add_run(id, num(r[2]), -1)
  redis.call('ZADD', P .. 'running', ts(now + num(r[1])), id)
  local list = P .. 'attempts:' .. id
  local entry = cjson.decode(redis.call('LINDEX', list, -1))
  note_machine(entry['machine'], 'interruption', -1)
  for _, name in ipairs({'ended', 'outcome', 'reason', 'message', 'restore_s', 'execute_s', 'sync_s', 'lost_s',
    'silent_s', 'commits', 'committed'}) do entry[name] = nil end
  redis.call('LSET', list, -1, cjson.encode(entry))
  return true
end

-- A group's worker may have a Redis user that sees its group alone (kelpie redis-acl). True when the call was refused.
local function refused(...)
  local answer = redis.pcall(...)
  return type(answer) == 'table' and answer.err ~= nil
end

-- Does what other groups could be touched by, or leaves it to a maintainer who may (tick.lua): in an hour, as the next
-- step of a workflow may still be submitted by a worker that may not take it back.
local LEFT_FOR_S = 3600
local function or_later(what, ...)
  if refused(...) then redis.call('ZADD', P .. 'leftover', ts(now + LEFT_FOR_S), what) end
end

-- Notes that the job's webhook is to be told of a status: once for each status, whoever asks again. Part of the very call
-- that changes the status, so that none is lost.
local function announce(id, status, reason)
  local r = redis.call('HMGET', job_key(id), 'webhook', 'attempt', 'machine')
  if not r[1] then return end
  local entry = {state = 'waiting', tries = 0, at = ts(now), attempt = num(r[2]), machine = r[3] or nil, reason = reason}
  if redis.call('HSETNX', job_key(id), 'told:' .. status, cjson.encode(entry)) == 1 then
    redis.call('ZADD', P .. 'webhooks', ts(now), id .. ':' .. status)
  end
end

-- Drafts (later steps of a workflow) live as long as a job that refers to them does, and retention_s more. The string
-- that tells a draft's group lives and goes with it.
local function where_of(key) return 'kelpie:where:' .. (string.match(key, ':job:(.*)$') or '') end

-- Before drafts are held: raises where the caller may not see one of them.
local function keep_drafts(list)
  for _, key in ipairs(cjson.decode(list)) do
    local draft = redis.call('HGET', key, 'status') == 'draft'
    if draft and redis.call('TTL', where_of(key)) >= 0 then redis.call('PERSIST', where_of(key)) end
  end
end

local function hold_drafts(list)
  for _, key in ipairs(cjson.decode(list)) do
    if redis.call('HGET', key, 'status') == 'draft' then
      redis.call('HINCRBY', key, 'refs', 1)
      redis.call('PERSIST', key)
    end
  end
end

local function release_draft(key, retention_s)
  if redis.call('HGET', key, 'status') == 'draft' and redis.call('HINCRBY', key, 'refs', -1) <= 0 then
    redis.call('EXPIRE', key, retention_s)
    or_later('where:' .. (string.match(key, ':job:(.*)$') or ''), 'EXPIRE', where_of(key), retention_s)
  end
end

local function release_drafts(id, list, retention_s)
  for _, key in ipairs(cjson.decode(list)) do
    if refused('HGET', key, 'status') then
      redis.call('ZADD', P .. 'leftover', ts(now + LEFT_FOR_S), 'draft:' .. id .. ':' .. key)
    else
      release_draft(key, retention_s)
    end
  end
end

-- The lines that it holds are free for other jobs, also for those whose worker may not read this job's status.
local function let_go_of_lines(id)
  for _, digest in ipairs(cjson.decode(get(id, 'lines') or '[]')) do
    local key = 'kelpie:line:' .. digest
    if redis.call('HGET', key, 'holder') == id then redis.call('HSET', key, 'over', 1) end
  end
end

-- The machine is not to have the job for so long, while others may.
local function ban(id, machine, ban_s)
  local key, banned = P .. 'bans:' .. machine, cjson.decode(get(id, 'banned_on') or '{}')
  banned[machine] = 1
  redis.call('HSET', job_key(id), 'ban:' .. machine, ts(now + ban_s), 'banned_on', cjson.encode(banned))
  redis.call('ZREMRANGEBYSCORE', key, '-inf', ts(now))
  redis.call('ZADD', key, ts(now + ban_s), id)
  redis.call('EXPIRE', key, math.ceil(ban_s))
end

-- Adds facts to the open entry of the attempts' history, and its time to the sums; till is its last sign of life.
-- Whatever the attempt was transferring, it is over. Returns the sums.
local function close_attempt(id, outcome, reason, message, extras, till)
  local key = P .. 'attempts:' .. id
  local last = redis.call('LINDEX', key, -1)
  if not last then
    redis.call('HDEL', job_key(id), 'transfer')
    return {}
  end
  local entry = cjson.decode(last)
  entry['ended'] = now
  entry['outcome'] = outcome
  entry['reason'] = reason
  if message ~= '' then entry['message'] = message end
  local stored = redis.call('HMGET', job_key(id), 'attempt_commits', 'committed_at')
  entry['commits'] = num(stored[1])
  if stored[1] then entry['committed'] = num(stored[2]) end
  if extras ~= '' then
    for name, value in pairs(cjson.decode(extras)) do entry[name] = value end
  end
  local given = entry['execute_s']
  local sums, executed = time_of_attempt(id, outcome == 'completed', till, type(given) == 'number' and given or nil)
  local function rounded(seconds) return tonumber(string.format('%.3f', seconds)) end
  entry['restore_s'], entry['execute_s'] = rounded(sums.restoring_s), rounded(executed or 0)
  entry['sync_s'], entry['lost_s'] = rounded(sums.syncing_s or 0), rounded(sums.lost_s or 0)
  entry['silent_s'] = rounded(sums.silent_s)
  sums['end:' .. outcome .. ':' .. reason] = 1
  -- Before anything is written: a number that JSON does not know ends it here, however often it is tried again.
  local closed = cjson.encode(entry)
  redis.call('HDEL', job_key(id), 'transfer')
  account(sums)
  redis.call('LSET', key, -1, closed)
  note_machine(entry['machine'], outcome, 1)
  for _, name in ipairs({'received_bytes', 'received_s', 'sent_bytes', 'sent_s'}) do
    if type(entry[name]) == 'number' then note_machine(entry['machine'], name, entry[name]) end
  end
  return sums
end

-- How many lines of output stay with the record of a job that completed; of one that did not, all that there are.
local KEPT_LINES = 50

-- The one way into an ended state. Celery's own bookkeeping follows through the outbox.
local function finish(id, status, reason, message, result, outbox_s, retention_s)
  leave_queue(id)
  redis.call('ZREM', P .. 'running', id)
  redis.call('HSET', job_key(id), 'status', status, 'phase', '', 'reason', reason, 'message_text', message,
    'result', result, 'ended_at', ts(now), 'outbox_until', ts(now + outbox_s))
  -- Most jobs complete, and few look at their output then.
  if status == 'completed' then redis.call('LTRIM', P .. 'output:' .. id, -KEPT_LINES, -1) end
  redis.call('HINCRBY', job_key(id), 'endings', 1)
  redis.call('ZADD', P .. 'ended', ts(now), id)
  redis.call('ZADD', P .. 'outbox', ts(now + outbox_s), id)
  redis.call('HINCRBY', P .. 'counts', status, 1)
  announce(id, status, reason)
  let_go_of_lines(id)
  local r = redis.call('HMGET', job_key(id), 'drafts', 'banned_on')
  if r[1] then release_drafts(id, r[1], retention_s) end
  -- Its bans are of no account any more.
  for machine in pairs(cjson.decode(r[2] or '{}')) do redis.call('ZREM', P .. 'bans:' .. machine, id) end
end

-- Deletes an ended job: record, history, indexes and its place among the idempotency keys.
local function forget(id)
  local r = redis.call('HMGET', job_key(id), 'status', 'idem', 'webhook')
  if r[1] then redis.call('HINCRBY', P .. 'counts', r[1], -1) end
  if r[2] and redis.call('GET', P .. 'idem:' .. r[2]) == id then redis.call('DEL', P .. 'idem:' .. r[2]) end
  redis.call('DEL', job_key(id), P .. 'attempts:' .. id, P .. 'output:' .. id)
  -- An index of this group may name a job that is another's.
  if redis.call('GET', 'kelpie:where:' .. id) == this_group() then or_later('where:' .. id, 'DEL', 'kelpie:where:' .. id) end
  for _, index in ipairs({'ended', 'created', 'outbox', 'outbox_left'}) do redis.call('ZREM', P .. index, id) end
  if r[3] then
    for _, status in ipairs({'running', 'completed', 'failed', 'canceled'}) do
      redis.call('ZREM', P .. 'webhooks', id .. ':' .. status)
      redis.call('ZREM', P .. 'webhooks_dead', id .. ':' .. status)
    end
  end
end
