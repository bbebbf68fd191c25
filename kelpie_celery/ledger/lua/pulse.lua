-- A worker's sign of life, and what it should know within a second: whether it drains, and which of its jobs are to be
-- canceled.
-- ARGV: 1 group, 2 machine, 3 what is recorded ('1' sign of life | '0' nothing | 'bye' the worker ends),
--       4 worker ('' = none to speak of), 5 its name, 6 its instance ('' = unknown), 7 its slots,
--       8 it knows that it drains, and has told SaladCloud ('1' | '0'), 9 SaladCloud may take it for what it is not
--       ('1' | '0'), 10 a person had it take nothing more ('1' | '0'), 11.. ids of the jobs that it runs
-- Returns {drains ('1' | '0'), jobs in a row that its machine failed and others completed, ids of the jobs to cancel...}
P = 'kelpie:g:' .. ARGV[1] .. ':'
local machine, worker = ARGV[2], ARGV[4]
local key = P .. 'worker:' .. worker
if ARGV[3] == '1' then
  redis.call('ZADD', P .. 'machines', ts(now), machine)
  if worker ~= '' then
    redis.call('ZADD', P .. 'workers', ts(now), worker)
    redis.call('HSET', key, 'name', ARGV[5], 'machine', machine, 'instance', ARGV[6], 'slots', ARGV[7], 'untold', ARGV[9],
      'by_hand', ARGV[10], 'jobs', #ARGV - 10)
    redis.call('EXPIRE', key, 86400)
  end
elseif ARGV[3] == 'bye' then
  redis.call('ZREM', P .. 'workers', worker)
  redis.call('DEL', key)
end
local closed = num(redis.call('HGET', P .. 'scaler', 'closed'))
local drains = worker ~= '' and (closed > now or num(redis.call('HGET', key, 'draining')) > now)
if drains and ARGV[3] == '1' then redis.call('HSET', key, 'settled', ARGV[8]) end
local out = {drains and '1' or '0', tostring(num(redis.call('ZSCORE', P .. 'streaks', machine)))}
for i = 11, #ARGV do
  if redis.call('HEXISTS', job_key(ARGV[i]), 'cancel') == 1 then out[#out + 1] = ARGV[i] end
end
return out
