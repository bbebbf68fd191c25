-- A worker's sign of life, and what it should know within a second: which of its jobs are to be canceled.
-- ARGV: 1 group, 2 machine, 3 record the sign of life ('1' | '0'), 4.. ids of the jobs that it runs
-- Returns the ids of those for which a cancel is wanted.
P = 'kelpie:g:' .. ARGV[1] .. ':'
if ARGV[3] == '1' then redis.call('ZADD', P .. 'machines', ts(now), ARGV[2]) end
local out = {}
for i = 4, #ARGV do
  if redis.call('HEXISTS', job_key(ARGV[i]), 'cancel') == 1 then out[#out + 1] = ARGV[i] end
end
return out
