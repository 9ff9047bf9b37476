//! Penstock beside other proxies under the same load: who serves how many requests with a
//! second of CPU time. All proxies are up at once and take turns of about a second, since the
//! speed of a machine drifts more within minutes than the proxies differ; what counts is the ratio
//! within a round.

pub mod backend;
pub mod grpc;
pub mod load;
pub mod paced;
pub mod plot;
pub mod process;
pub mod proxy;
pub mod resident;
pub mod summary;

/// CPU of the proxies; each has it to itself in its turn.
pub const PROXY_CPU: usize = 0;

/// CPU of the load generator and of the backends.
pub const LOAD_CPU: usize = 1;

/// Bytes in the body of every answer.
pub const BODY_BYTES: usize = 1024;

/// What gRPC clients call.
pub const GRPC_PATH: &str = "/bench.Echo/Unary";

/// Hosts that every proxy has beside the one that is asked for.
pub const OTHER_HOSTS: usize = 99;

/// Name that clients ask for, which the machine resolves by itself.
pub const HOST: &str = "localhost";
