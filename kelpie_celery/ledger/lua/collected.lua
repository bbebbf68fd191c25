-- Notes that the objects of dropped commits are deleted: there is nothing left to do for them.
-- ARGV: 1 digest of the line, 2.. ids of the commits
-- Returns how many of them were on the list. A kept commit is never touched, whatever id is given.
local line, gone, left = read_line(ARGV[1]), {}, {}
for i = 2, #ARGV do gone[ARGV[i]] = true end
for _, commit in ipairs(cjson.decode(line.dropped)) do
  if not gone[commit.id] then left[#left + 1] = commit end
end
local removed = line.num_dropped - #left
if removed > 0 then redis.call('HSET', line.key, 'dropped', list(left), 'num_dropped', #left) end
return removed
