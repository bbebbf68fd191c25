-- A heartbeat: renews the lease of the attempt that owns the job, and tells it what is wanted of it.
-- ARGV: 1 id, 2 attempt, 3 nonce, 4 phase, 5 progress (JSON, '' = unchanged), 6 count as a heartbeat ('1' | '0'),
--       7 transfer under way (JSON, '' = unchanged, '{}' = none), 8 and on: new output, as _output.lua has it
-- Returns {'ok', cancel wanted ('1' | '0'), now, lease_s} | {'lost', status}
-- Invariant: a lease that ran out is still renewed by its own attempt as long as nobody else claimed the job; if the
-- reaper had made the job pending already, that interruption is taken back.
local id, attempt, nonce = ARGV[1], ARGV[2], ARGV[3]
if not find(id) then return {'lost', 'unknown'} end
local key = job_key(id)
if not owns(id, attempt, nonce) and not take_back(id, attempt, nonce) then
  return {'lost', get(id, 'status') or 'unknown'}
end
local r = redis.call('HMGET', key, 'lease_s', 'cancel')
redis.call('ZADD', P .. 'running', ts(now + num(r[1])), id)
redis.call('HSET', key, 'phase', ARGV[4], 'heartbeat_at', ts(now))
if ARGV[4] == 'executing' then redis.call('HSETNX', key, 'launched_at', ts(now)) end
if ARGV[4] == 'uploading' then redis.call('HSETNX', key, 'exited_at', ts(now)) end
if ARGV[5] ~= '' then redis.call('HSET', key, 'progress', ARGV[5]) end
if ARGV[7] == '{}' then
  redis.call('HDEL', key, 'transfer')
elseif ARGV[7] ~= '' then
  redis.call('HSET', key, 'transfer', ARGV[7])
end
put_output(id, attempt, 8)
if ARGV[6] == '1' then redis.call('HINCRBY', key, 'num_heartbeats', 1) end
return {'ok', r[2] and '1' or '0', ts(now), r[1]}
