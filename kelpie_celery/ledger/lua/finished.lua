-- Keeps the result of a command that succeeded while its attempt is not yet reported: should that never come, the next
-- attempt adopts it, and nothing is done twice.
-- ARGV: 1 id, 2 attempt, 3 nonce, 4 result (JSON)
-- Returns {'ok'} | {'lost', status}
-- Invariant: only of the attempt that owns the job. Asked again, it changes nothing.
local id, attempt, nonce = ARGV[1], ARGV[2], ARGV[3]
if not find(id) then return {'lost', 'unknown'} end
if not owns(id, attempt, nonce) and not take_back(id, attempt, nonce) then
  return {'lost', get(id, 'status') or 'unknown'}
end
redis.call('HSET', job_key(id), 'finished', ARGV[4])
return {'ok'}
