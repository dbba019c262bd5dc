//! The boundary between Rust and Python: a list of exports and nothing else.
//!
//! The only room that names PyO3. Classes here convert arguments, release the interpreter and call
//! the rooms beside this one; they decide nothing.

mod amqp_client;
mod amqp_delivery;
mod amqp_subscriber;
mod child;
mod detached;
mod errors;
mod executor;
mod files;
mod frame_stack;
mod frames;
mod handlers;
mod heartbeat;
mod imports;
mod interrupt;
mod job_end;
mod kept;
mod lock_waiters;
mod parallel;
mod scoreboard;
mod server;
mod signals;
mod supervisor;
mod thread_data;
mod worker;
mod wsgi;

use pyo3::prelude::*;

/// The native core of osloxide; Python code imports the modules above it instead.
#[pymodule(gil_used = false)]
mod _native {
    use pyo3::prelude::*;
    use std::sync::OnceLock;

    #[pymodule_export]
    use super::amqp_client::{AmqpClient, AmqpRequest, amqp_remedy};
    #[pymodule_export]
    use super::amqp_delivery::AmqpDelivery;
    #[pymodule_export]
    use super::amqp_subscriber::{AmqpOutbox, AmqpQueue, AmqpSubscriber, AmqpSubscription};
    #[pymodule_export]
    use super::executor::Executor;
    #[pymodule_export]
    use super::files::read_file;
    #[pymodule_export]
    use super::frames::{amqp_ack, amqp_confirms, amqp_deliveries, amqp_publish};
    #[pymodule_export]
    use super::handlers::{end_init_at_sigterm, guard_heard, guard_signals};
    #[pymodule_export]
    use super::heartbeat::{AmqpConnection, Heartbeats};
    #[pymodule_export]
    use super::interrupt::{interrupt_thread, thread_state, thread_waits};
    #[pymodule_export]
    use super::job_end::when_job_ends;
    #[pymodule_export]
    use super::lock_waiters::{learn_lock_waiters, waits_for_interpreter};
    #[pymodule_export]
    use super::scoreboard::Scoreboard;
    #[pymodule_export]
    use super::server::{Server, TlsConfig};
    #[pymodule_export]
    use super::signals::{install_wakeup, nudge_main_thread, park, uninstall_wakeup, wake};
    #[pymodule_export]
    use super::supervisor::Supervisor;
    #[pymodule_export]
    use super::thread_data::{forget_thread_data, unknown_thread_data};
    #[pymodule_export]
    use super::worker::{
        adopt_descendants, arm_deadline, beat, bound_unheard, disarm_deadline, enter_template,
        enter_worker, limit_worker, native_threads, parent_died, relay_signals, signals_heard,
        stop_relaying, worker_leaving, worker_ready, worker_reconfigured,
    };
    #[pymodule_export]
    use super::wsgi::{AccessFilter, FileWrapper, NativeLog, check_log_format, requests_in_flight};

    /// Levels of loggers that were remembered.
    static LOG_LEVELS: OnceLock<pyo3_log::ResetHandle> = OnceLock::new();

    /// Forgets which loggers take which levels: the configuration may have changed.
    #[pyfunction]
    fn reread_log_levels() {
        if let Some(levels) = LOG_LEVELS.get() {
            levels.reset();
        }
    }

    /// Version of the extension, equal to the distribution's.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::frame_stack::keep_chunks(module.py());
        super::child::note_forks()?;
        super::thread_data::keep_in_children(module.py())?;
        super::executor::make_types(module.py());
        super::wsgi::make_types(module.py());
        super::wsgi::keep_free()?;
        crate::worker::keep_free()?;
        // What the rooms log goes to Python's loggers, named after their modules. Fails only where
        // another copy of the module has done it before.
        if let Ok(levels) = pyo3_log::try_init() {
            let _ = LOG_LEVELS.set(levels);
        }
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
