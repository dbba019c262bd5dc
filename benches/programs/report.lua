-- For wrk: one JSON line at the end of a round; latency in microseconds. METHOD, BODY_BYTES and
-- HEADERS (name=value, separated by |) come from the environment.
wrk.method = os.getenv("METHOD") or "GET"
local bytes = tonumber(os.getenv("BODY_BYTES") or "0")
if bytes > 0 then
  wrk.body = string.rep("b", bytes)
end
for pair in string.gmatch(os.getenv("HEADERS") or "", "([^|]+)") do
  local name, value = string.match(pair, "^([^=]+)=(.*)$")
  wrk.headers[name] = value
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    "RESULT {\"requests\": %d, \"duration_us\": %d, \"bytes\": %d, \"p50\": %.0f, \"p99\": %.0f, " ..
    "\"failed\": {\"connect\": %d, \"read\": %d, \"write\": %d, \"status\": %d, \"timeout\": %d}}\n",
    summary.requests, summary.duration, summary.bytes, latency:percentile(50),
    latency:percentile(99), e.connect, e.read, e.write, e.status, e.timeout))
end
