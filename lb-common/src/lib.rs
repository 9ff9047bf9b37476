//! WIRE: what the kernel program and the agent agree on, and the pure arithmetic both run.
//! No std, no allocation, no I/O; every shared struct has its size asserted here.
#![no_std]
