-- Keeps the definition of a later step of a workflow until Celery reaches it.
-- ARGV: 1 id, 2 group, 3 definition (JSON), 4 retention (s), 5 the workflow that it belongs to ('' = unknown)
-- Returns 1 when it was written, 0 when the id is taken: by a job, or by a draft of another workflow that is under way.
-- Invariant: a draft that no live job refers to goes after retention; see hold_drafts and release_drafts. One that nobody
-- refers to yet is left of a submit that went wrong, and is replaced.
local id, group = ARGV[1], ARGV[2]
if find(id) and redis.call('EXISTS', job_key(id)) == 1 then
  local r = redis.call('HMGET', job_key(id), 'status', 'refs', 'workflow')
  if r[1] ~= 'draft' then return 0 end
  if num(r[2]) > 0 then return r[3] == ARGV[5] and 1 or 0 end
  redis.call('DEL', job_key(id))
end
P = 'kelpie:g:' .. group .. ':'
redis.call('HSET', job_key(id), 'status', 'draft', 'definition', ARGV[3], 'created', ts(now), 'workflow', ARGV[5])
redis.call('EXPIRE', job_key(id), ARGV[4])
redis.call('SET', 'kelpie:where:' .. id, group, 'EX', ARGV[4])
return 1
