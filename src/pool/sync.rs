//! Locks, condition variables and the clock of the pool and of what runs on it.
//!
//! Owns the choice between the real ones and those of the simulation: `cfg(simulate)` puts
//! simulated ones in their place, and every schedule can be run (docs/simulation.md). What is
//! shipped has [`crate::locks`] and `std` here and nothing else.

#[cfg(not(simulate))]
pub(crate) use crate::locks::{Condvar, Mutex, MutexGuard};
#[cfg(not(simulate))]
pub(crate) use std::time::Instant;

#[cfg(simulate)]
pub(crate) use super::simulated::{Condvar, Instant, Mutex, MutexGuard};
