-- What wrk counted, exact and on one line; `load.rs` reads it. Called once, after the load.
function done(summary, latency, _)
   local e = summary.errors
   local fields = {
      { "requests", summary.requests }, { "duration_us", summary.duration }, { "bytes", summary.bytes },
      { "p50_us", latency:percentile(50) }, { "p99_us", latency:percentile(99) },
      { "connect", e.connect }, { "read", e.read }, { "write", e.write },
      { "status", e.status }, { "timeout", e.timeout },
   }
   io.write("counted")
   for _, field in ipairs(fields) do
      io.write(string.format(" %s=%.0f", field[1], field[2]))
   end
   io.write("\n")
end
