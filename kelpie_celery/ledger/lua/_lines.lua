-- Shared by the operations on lines; it is put behind _common.lua.
--
-- A line is the sequence of commits of one (endpoint, bucket, prefix); its head is what a restore gets. A hash with
--   endpoint, bucket, prefix                        its address
--   holder, attempt, nonce                          who committed last
--   over                                            1 once that job has ended
--   generation, head                                of the newest commit: number and id
--   kept                                            JSON list of commits, oldest first; the head is the last one
--   dropped, num_dropped                            the same, each with the time at which it was dropped; how many
-- A commit is an object: id, generation, manifest, why, files, bytes, sent_bytes, job, attempt, nonce, at. Whoever writes
-- one here gives large numbers and times as text: cjson keeps 14 digits of a number.
-- Invariants: the generation of a line only grows; what has left `kept` never comes back.

local KEPT_LAST, KEPT_HOURS, DROPPED_MAX, DROPPED_LEFT = 2, 24, 1000, 900

local function line_key(digest) return 'kelpie:line:' .. digest end

-- The dropped ones stay text: there may be many, and a commit only adds to them.
local function read_line(digest)
  local r = redis.call('HMGET', line_key(digest), 'holder', 'generation', 'kept', 'dropped', 'num_dropped', 'over')
  local line = {digest = digest, over = r[6] == '1', key = line_key(digest), holder = r[1] or '', generation = num(r[2]), kept = cjson.decode(r[3] or '[]'),
    dropped = r[4] or '[]', num_dropped = num(r[5])}
  line.head = line.kept[#line.kept]
  return line
end

-- cjson writes an empty table as an object.
local function list(entries) return #entries == 0 and '[]' or cjson.encode(entries) end

-- May the line's holder still commit? It may be of any group; a caller who may not read its record goes by the line.
local function lives(line)
  if line.holder == '' then return false end
  local group = redis.call('GET', 'kelpie:where:' .. line.holder)
  local status = group and redis.pcall('HGET', 'kelpie:g:' .. group .. ':job:' .. line.holder, 'status')
  if type(status) == 'table' then return not line.over end
  return status == 'pending' or status == 'running'
end

local function held_against(line, id) return line.holder ~= id and lives(line) end

local function holds(entries, commit_id)
  for _, commit in ipairs(entries) do if commit.id == commit_id then return true end end
  return false
end

-- Which commits stay once the newest one has come: the last 2, the newest of each of the last 24 hours, and the newest
-- that was not made because the folder happened to be quiet. The others are dropped, for good.
local function retain(line)
  local hours, found, told, kept, gone = {}, 0, false, {}, {}
  local oldest_hour = math.floor(now / 3600) - KEPT_HOURS
  for i = #line.kept, 1, -1 do
    local commit = line.kept[i]
    local hour = math.floor(num(commit.at) / 3600)
    local stays = i > #line.kept - KEPT_LAST
    if hour > oldest_hour and not hours[hour] and found < KEPT_HOURS then
      hours[hour], found, stays = true, found + 1, true
    end
    if commit.why ~= 'quiet' and not told then told, stays = true, true end
    table.insert(stays and kept or gone, 1, commit)
  end
  line.kept = kept
  for _, commit in ipairs(gone) do
    commit.dropped = ts(now)
    local before = line.num_dropped > 0 and string.sub(line.dropped, 1, -2) .. ',' or '['
    line.dropped, line.num_dropped = before .. cjson.encode(commit) .. ']', line.num_dropped + 1
  end
  if line.num_dropped > DROPPED_MAX then
    local all, newest = cjson.decode(line.dropped), {}
    for i = #all - DROPPED_LEFT + 1, #all do newest[#newest + 1] = all[i] end
    line.dropped, line.num_dropped = list(newest), #newest
  end
end

-- Makes a commit the head of its line.
local function advance(line, given, id, attempt, nonce, expiry_s)
  local commit = given.commit
  commit.job, commit.attempt, commit.nonce, commit.at = id, attempt, nonce, ts(now)
  line.kept[#line.kept + 1] = commit
  line.head, line.holder, line.generation = commit, id, commit.generation
  retain(line)
  redis.call('HSET', line.key, 'endpoint', given.endpoint, 'bucket', given.bucket, 'prefix', given.prefix, 'holder', id,
    'attempt', attempt, 'nonce', nonce, 'generation', tostring(commit.generation), 'head', commit.id, 'kept',
    list(line.kept), 'dropped', line.dropped, 'num_dropped', line.num_dropped, 'over', ended(get(id, 'status')) and 1 or 0)
  redis.call('EXPIRE', line.key, expiry_s)
end

-- Notes which lines the job has, so that its end can let go of them.
local function note_lines(id, lines)
  local digests = {}
  for i, line in ipairs(lines) do digests[i] = line.digest end
  if #digests > 0 then redis.call('HSET', job_key(id), 'lines', cjson.encode(digests)) end
end

-- {now, one row a line: {holder, '1' when its job may still commit, generation, kept, dropped}}
local function pictures(lines)
  local rows = {ts(now)}
  for _, line in ipairs(lines) do
    rows[#rows + 1] = {line.holder, lives(line) and '1' or '0', tostring(line.generation), list(line.kept),
      line.dropped}
  end
  return rows
end
