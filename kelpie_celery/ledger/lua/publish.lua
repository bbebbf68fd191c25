-- Publishes the hint of a job that an attempt has just given back.
-- ARGV: 1 id, 2 attempt
-- Returns 1 when a hint went out, 0 when there is nothing to publish (delayed, claimed or ended meanwhile).
local id = ARGV[1]
if not find(id) then return 0 end
local r = redis.call('HMGET', job_key(id), 'status', 'attempt')
if r[1] ~= 'pending' or r[2] ~= ARGV[2] or redis.call('ZSCORE', P .. 'delayed', id) then return 0 end
publish(id)
return 1
