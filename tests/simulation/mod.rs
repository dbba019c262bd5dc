//! The supervisor under every event in every order: a simulated kernel, simulated workers, a
//! simulated Python and a clock that only the simulation moves. docs/simulation.md describes it.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::print_stderr,
    clippy::struct_excessive_bools,
    clippy::needless_pass_by_ref_mut,
    clippy::option_option,
    clippy::wildcard_enum_match_arm,
    reason = "a module of a test program, outside the reach of allow-unwrap-in-tests"
)]

pub mod action;
pub mod explorer;
pub mod kernel;
pub mod promises;
pub mod settling;
pub mod world;
