//! Tier `proxy`: the L7 engine between real clients and real backends on loopback.

mod access_log;
mod arrival;
mod bodies;
mod buffers;
mod change;
mod client_auth;
mod edges;
mod errors;
mod grpc;
mod h2_client;
mod h2_clients;
mod h2_conformance;
mod h2_floods;
mod health;
mod http2;
mod limits;
mod many;
mod policies;
mod requests;
mod retries;
mod rig;
mod smuggling;
mod takeover;
mod tls;
mod tls_client;
mod upstream_tls;
