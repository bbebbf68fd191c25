-- Keeps what was decided about a group; the same once more in a row is counted, not kept again.
-- ARGV: 1 group, 2 entry (JSON object that is not empty), 3 digest of what makes it the same
--       as another ('' = it never is), 4 how many are kept,
--       5 what the next decision must know (JSON, '' = unchanged)
-- Returns how often in a row.
P = 'kelpie:g:' .. ARGV[1] .. ':'
local key, same, at, count = P .. 'decisions', ARGV[3], ts(now), 1
local last = redis.call('LINDEX', key, 0)
local before = last and cjson.decode(last)
local again = before and same ~= '' and before.same == same
if again then at, count = before.at, num(before.count) + 1 end
-- Put together as text: cjson would make objects of empty lists, and round numbers.
local entry = '{"at":"' .. at .. '","until_at":"' .. ts(now) .. '","count":' .. count .. ',"same":"' .. same .. '",' ..
  string.sub(ARGV[2], 2)
if again then
  redis.call('LSET', key, 0, entry)
else
  redis.call('LPUSH', key, entry)
  redis.call('LTRIM', key, 0, num(ARGV[4]) - 1)
end
if ARGV[5] ~= '' then redis.call('HSET', P .. 'scaler', 'memory', ARGV[5]) end
-- For the metrics: every look counts, also those that are one entry; and how many there should be, and are.
local told = cjson.decode(ARGV[2])
local what = told.action or told.kind
if type(what) == 'string' then redis.pcall('HINCRBY', P .. 'totals', 'decision:' .. what, 1) end
if type(told.replicas) == 'number' and type(told.fleet) == 'table' then
  redis.call('HSET', P .. 'scaler', 'desired', told.replicas, 'actual', told.fleet.running or 0)
end
return count
