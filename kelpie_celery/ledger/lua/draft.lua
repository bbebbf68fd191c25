-- Keeps the definition of a later step of a workflow until Celery reaches it.
-- ARGV: 1 id, 2 group, 3 definition (JSON), 4 retention (s)
-- Returns 1 when it was written, 0 when the id is known already.
-- Invariant: a draft that no live job refers to goes after retention; see hold_drafts and release_drafts.
local id, group = ARGV[1], ARGV[2]
if find(id) and redis.call('EXISTS', job_key(id)) == 1 then return 0 end
P = 'kelpie:g:' .. group .. ':'
redis.call('HSET', job_key(id), 'status', 'draft', 'definition', ARGV[3], 'created', ts(now))
redis.call('EXPIRE', job_key(id), ARGV[4])
redis.call('SET', 'kelpie:where:' .. id, group, 'EX', ARGV[4])
return 1
