-- Reads lines, all at one moment, and renews their expiry.
-- ARGV: 1 expiry (s), 2.. digests of the lines
-- Returns {now, {holder, '1' when its job may still commit, generation, kept (JSON), dropped (JSON)} for each line};
--   a line that does not exist has generation 0.
local lines = {}
for i = 2, #ARGV do
  lines[#lines + 1] = read_line(ARGV[i])
  redis.call('EXPIRE', line_key(ARGV[i]), ARGV[1])
end
return pictures(lines)
