//! `Executor` for Python: calls in, futures out, on the threads of [`crate::executor`]; and requests
//! that come straight from the thread that reads them, which have no future.
//!
//! A future is a `concurrent.futures.Future` whose condition is made only when a caller asks for
//! it (python/osloxide/messaging/executor.py). As long as nobody has, a thread that finishes the job
//! may write the result without taking a lock: the interpreter is held from the look to the last
//! write, and no Python code runs in between.

use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList, PyString, PyTuple};

use super::amqp_delivery::{AmqpDelivery, name_of};
use super::child;
use super::detached::detached;
use super::errors::executor_refusal;
use super::kept::{Kept, intern};
use super::{imports, job_end, parallel, signals};
use crate::amqp::client::{Delivery, PickUp, Sink, warn_of_lost};
use crate::executor::{self, Refused, Work};
use crate::locks::Mutex;
use crate::scoreboard::InFlight;

/// How long a submitter waits for room before it lets Python signal handlers run.
const PATIENCE: Duration = Duration::from_millis(100);

/// One call whose result a future may await.
struct Job {
    /// None where nobody asks for the result.
    future: Option<Py<PyAny>>,
    task: Task,
    /// Counted under a name: then a result of `False` says that it failed.
    is_named: bool,
    /// It ran before, as far as a coroutine.
    is_resumed: bool,
}

/// What is called.
#[expect(
    clippy::large_enum_variant,
    reason = "few exist at a time; a box would cost each request an allocation"
)]
enum Task {
    Call {
        function: Py<PyAny>,
        arguments: Py<PyTuple>,
        keywords: Option<Py<PyDict>>,
    },
    /// A request that has come straight from the thread that reads.
    Request {
        handler: Arc<Py<PyAny>>,
        /// None once the handler has it.
        delivery: Option<Delivery>,
        unique_id: Option<String>,
    },
}

/// What the pool's threads do.
#[derive(Debug)]
struct Calls {
    /// Beginning of the names of threads.
    name: String,
    numbers: AtomicU64,
    /// The executor that these are the calls of.
    engine: Arc<OnceLock<Engine>>,
}

type Engine = Weak<executor::Executor<Calls>>;

/// Runs callables on elastic native threads.
#[pyclass(frozen, weakref, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct Executor {
    engine: Arc<executor::Executor<Calls>>,
    make_future: Py<PyAny>,
    has_bound: bool,
}

#[pymethods]
impl Executor {
    #[new]
    #[pyo3(signature = (make_future, max_workers, *, max_queued=0, thread_name="rpc"))]
    fn new(
        py: Python<'_>,
        make_future: Py<PyAny>,
        max_workers: usize,
        max_queued: usize,
        thread_name: &str,
    ) -> PyResult<Self> {
        if max_workers == 0 {
            return Err(PyValueError::new_err(
                "max_workers is 0; give at least 1".to_owned(),
            ));
        }
        child::prepare(py)?;
        let engine = Arc::new(OnceLock::new());
        let calls = Calls {
            name: thread_name.to_owned(),
            numbers: AtomicU64::new(0),
            engine: Arc::clone(&engine),
        };
        let executor = Arc::new(executor::Executor::new(calls, max_workers, max_queued));
        let _ = engine.set(Arc::downgrade(&executor));
        Ok(Self {
            engine: executor,
            make_future,
            has_bound: max_queued != 0,
        })
    }

    #[pyo3(signature = (function, /, *arguments, **keywords))]
    fn submit(
        &self,
        py: Python<'_>,
        function: Bound<'_, PyAny>,
        arguments: Bound<'_, PyTuple>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        self.queue(py, None, function, arguments, keywords)
    }

    #[pyo3(signature = (name, function, /, *arguments))]
    fn submit_as(
        &self,
        py: Python<'_>,
        name: &str,
        function: Bound<'_, PyAny>,
        arguments: Bound<'_, PyTuple>,
    ) -> PyResult<Py<PyAny>> {
        self.queue(py, Some(name), function, arguments, None)
    }

    #[pyo3(signature = (cancel=false))]
    fn close<'py>(&self, py: Python<'py>, cancel: bool) -> PyResult<Bound<'py, PyList>> {
        self.check_process()?;
        let mut calls = Vec::new();
        let mut deliveries = Vec::new();
        for job in self.engine.close(cancel) {
            match job.task {
                Task::Call {
                    function,
                    arguments,
                    ..
                } => calls.push((job.future, function, arguments)),
                Task::Request { delivery, .. } => deliveries.extend(delivery),
            }
        }
        py.detach(|| {
            let lost = deliveries.iter().filter(|delivery| !delivery.give_back());
            warn_of_lost(lost.count());
        });
        PyList::new(py, calls)
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.check_process()?;
        let deadline = signals::deadline_in(timeout)?;
        let ended = self.engine.ended_fd()?;
        let ready = signals::wait_readable(py, &[ended.as_fd()], deadline)?;
        Ok(!ready.is_empty())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.check_process()?;
        let stats = self.engine.stats();
        let fields = PyDict::new(py);
        fields.set_item("threads", stats.threads)?;
        fields.set_item("busy", stats.busy)?;
        fields.set_item("queued", stats.queued)?;
        fields.set_item("held", stats.held)?;
        fields.set_item("most_queued", stats.most_queued)?;
        fields.set_item("begun", stats.begun)?;
        fields.set_item("cancelled", stats.cancelled)?;
        fields.set_item("oldest_wait", stats.oldest_wait.as_secs_f64())?;
        fields.set_item("total_wait", stats.total_wait.as_secs_f64())?;
        Ok(fields)
    }
}

impl Executor {
    /// A way for requests from the thread that reads them to the threads of this executor, which call
    /// *handler* with each, and with what became of it when it was picked up. Ends with the executor.
    pub(super) fn sink(&self, handler: Py<PyAny>) -> Sink {
        let engine = Arc::downgrade(&self.engine);
        let handler = Arc::new(handler);
        Arc::new(move |delivery, head| {
            let Some(engine) = engine.upgrade() else {
                return Some(delivery);
            };
            let job = Job {
                future: None,
                task: Task::Request {
                    handler: Arc::clone(&handler),
                    delivery: Some(delivery),
                    unique_id: head.unique_id,
                },
                is_named: true,
                is_resumed: false,
            };
            let (Refused::Closed(job) | Refused::Full { job, .. } | Refused::NoThread { job, .. }) =
                engine.submit(job, Some(&head.method)).err()?;
            match job.task {
                Task::Request { delivery, .. } => delivery,
                Task::Call { .. } => None,
            }
        })
    }

    fn queue(
        &self,
        py: Python<'_>,
        name: Option<&str>,
        function: Bound<'_, PyAny>,
        arguments: Bound<'_, PyTuple>,
        keywords: Option<Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        self.check_process()?;
        if !function.is_callable() {
            return Err(PyTypeError::new_err(format!(
                "{} is not callable; give a function and its arguments",
                function.repr()?
            )));
        }
        let future = self.make_future.call0(py)?;
        let mut job = Job {
            future: Some(future.clone_ref(py)),
            task: Task::Call {
                function: function.unbind(),
                arguments: arguments.unbind(),
                keywords: keywords.map(Bound::unbind),
            },
            is_named: name.is_some(),
            is_resumed: false,
        };
        loop {
            match self.engine.submit(job, name) {
                Ok(()) => return Ok(future),
                Err(Refused::Full { job: back, .. }) if self.has_bound => job = back,
                Err(refused) => return Err(executor_refusal(&refused)),
            }
            py.detach(|| self.engine.wait_for_room(Some(PATIENCE)));
            py.check_signals()?;
        }
    }

    fn check_process(&self) -> PyResult<()> {
        if self.engine.is_ours() {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(format!(
            "this executor belongs to process {}, and its threads did not follow into process {}; \
             make executors after the fork",
            self.engine.process(),
            std::process::id()
        )))
    }
}

impl Work for Calls {
    type Job = Job;

    fn run(&self, job: Job, in_flight: InFlight<'static>) {
        // Without the interpreter: the acknowledgement is written to a socket.
        let picked_up = match &job.task {
            Task::Request {
                delivery: Some(delivery),
                unique_id,
                ..
            } => delivery.pick_up(unique_id.as_deref()),
            Task::Request { .. } | Task::Call { .. } => PickUp::Run,
        };
        Python::attach(|py| {
            let future = job.future.as_ref().map(|future| future.clone_ref(py));
            if let Err(error) = self.call(py, job, in_flight, picked_up) {
                // Other code has finished or broken the future: it is not ours to judge.
                let future = future.as_ref().map(|future| future.bind(py));
                error.write_unraisable(py, future);
            }
            job_end::tell(py);
        });
    }

    fn at_once(&self) -> usize {
        parallel::at_once()
    }

    fn thread(&self, body: &mut dyn FnMut()) {
        Python::attach(|py| {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let thread = match imports::register_thread(py, &format!("{}_{number}", self.name)) {
                Ok(thread) => Some(thread),
                Err(error) => {
                    error.write_unraisable(py, None);
                    None
                }
            };
            detached(py, body);
            if let Some(Err(error)) = thread.map(|thread| thread.call_method0("leave")) {
                error.write_unraisable(py, None);
            }
        });
    }
}

impl Calls {
    fn call(
        &self,
        py: Python<'_>,
        mut job: Job,
        mut in_flight: InFlight<'static>,
        picked_up: PickUp,
    ) -> PyResult<()> {
        if !job.is_resumed && !job.begin(py)? {
            return Ok(());
        }
        match job.task.call(py, picked_up) {
            Ok(result) if goes_on(&result)? => self.hold(py, job, in_flight, &result),
            Ok(result) => {
                if job.is_named && result.is(&*PyBool::new(py, false)) {
                    in_flight.fail();
                }
                job.finish(
                    py,
                    intern!(py, "_result"),
                    intern!(py, "set_result"),
                    result,
                )
            }
            Err(error) => {
                in_flight.fail();
                job.fail(py, error)
            }
        }
    }

    /// Lets the worker's event loop finish the job, while this thread does something else.
    fn hold(
        &self,
        py: Python<'_>,
        job: Job,
        in_flight: InFlight<'static>,
        coroutine: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let Some(engine) = self.engine.get().and_then(Weak::upgrade) else {
            let _ = coroutine.call_method0("close")?;
            return job.fail(py, PyRuntimeError::new_err("the executor is gone"));
        };
        engine.hold();
        let resume = Resume {
            engine: Arc::downgrade(&engine),
            process: std::process::id(),
            rest: Mutex::new(Some((job, in_flight))),
        };
        let resume = Bound::new(py, resume)?;
        if let Err(error) = imports::start_coroutine(py, coroutine, resume.as_any()) {
            return match resume.get().take() {
                Some((job, _)) => job.fail(py, error),
                None => Err(error),
            };
        }
        py.detach(|| engine.wait_for_resumed());
        Ok(())
    }
}

/// What is left of a job that goes on without a thread. Called once, with a function and its
/// arguments, it runs them in the job's place; dropped instead, the job is over.
#[pyclass(frozen, module = "osloxide._native")]
struct Resume {
    engine: Engine,
    /// The one whose job it is.
    process: u32,
    rest: Mutex<Option<(Job, InFlight<'static>)>>,
}

#[pymethods]
impl Resume {
    #[pyo3(signature = (function, /, *arguments))]
    fn __call__(&self, function: Bound<'_, PyAny>, arguments: Bound<'_, PyTuple>) -> bool {
        let (Some((job, in_flight)), Some(engine)) = (self.rest(), self.engine.upgrade()) else {
            return false;
        };
        let py = function.py();
        let job = Job {
            task: Task::Call {
                function: function.unbind(),
                arguments: arguments.unbind(),
                keywords: None,
            },
            is_resumed: true,
            ..job
        };
        py.detach(|| engine.resume(job, in_flight));
        true
    }
}

impl Resume {
    /// What is left, once; nothing in a child that has inherited it, where it stays for ever: the
    /// job is the parent's.
    fn rest(&self) -> Option<(Job, InFlight<'static>)> {
        if self.process == std::process::id() {
            return self.rest.lock().take();
        }
        // Another thread of the parent may have held the lock: such a rest has no owner here.
        let rest = self.rest.try_lock().and_then(|mut rest| rest.take());
        let _stays = ManuallyDrop::new(rest);
        None
    }

    fn take(&self) -> Option<(Job, InFlight<'static>)> {
        let rest = self.rest();
        if let (true, Some(engine)) = (rest.is_some(), self.engine.upgrade()) {
            engine.release();
        }
        rest
    }
}

impl Drop for Resume {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// Makes those types that are not the module's. Made on first use, one waits for the interpreter in
/// the middle of it, and a child that is forked just then waits for it for ever.
pub(super) fn make_types(py: Python<'_>) {
    let _ = py.get_type::<Resume>();
}

/// True for a coroutine, and for what osloxide's own code wants to be treated like one.
fn goes_on(result: &Bound<'_, PyAny>) -> PyResult<bool> {
    static LATER: Kept<(Py<PyAny>, Py<PyAny>)> = Kept::new();
    let py = result.py();
    let kinds = LATER.get_or_make(|| {
        let coroutine = py.import("types")?.getattr("CoroutineType")?;
        let later = imports::later(py)?;
        Ok((coroutine.unbind(), later.unbind()))
    })?;
    let kind = result.get_type();
    Ok(kind.is(&kinds.0) || kind.is(&kinds.1))
}

impl Task {
    fn call<'py>(&mut self, py: Python<'py>, picked_up: PickUp) -> PyResult<Bound<'py, PyAny>> {
        child::call(py, || match self {
            Self::Call {
                function,
                arguments,
                keywords,
            } => {
                let keywords = keywords.as_ref().map(|keywords| keywords.bind(py));
                function.bind(py).call(arguments.bind(py), keywords)
            }
            Self::Request {
                handler, delivery, ..
            } => {
                let delivery = delivery.take().map(AmqpDelivery::new);
                handler.bind(py).call1((delivery, name_of(picked_up)))
            }
        })
    }
}

impl Job {
    /// False when it was cancelled.
    fn begin(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(future) = &self.future else {
            return Ok(true);
        };
        let future = future.bind(py);
        let (state, running) = (intern!(py, "_state"), intern!(py, "RUNNING"));
        if is_private(future)? {
            future.setattr(state, running)?;
            return Ok(true);
        }
        future
            .call_method0(intern!(py, "set_running_or_notify_cancel"))?
            .is_truthy()
    }

    fn fail(&self, py: Python<'_>, error: PyErr) -> PyResult<()> {
        if self.future.is_none() {
            return Err(error);
        }
        self.finish(
            py,
            intern!(py, "_exception"),
            intern!(py, "set_exception"),
            error.into_value(py).into_bound(py).into_any(),
        )
    }

    fn finish<'py>(
        &self,
        py: Python<'py>,
        field: &Bound<'py, PyString>,
        method: &Bound<'py, PyString>,
        value: Bound<'py, PyAny>,
    ) -> PyResult<()> {
        let Some(future) = &self.future else {
            return Ok(());
        };
        let future = future.bind(py);
        let (state, finished) = (intern!(py, "_state"), intern!(py, "FINISHED"));
        if is_private(future)? {
            future.setattr(field, value)?;
            future.setattr(state, finished)
        } else {
            future.call_method1(method, (value,)).map(drop)
        }
    }
}

/// True while nobody but the executor can be inside the future.
///
/// NOTE: whoever acts on the answer must not let go of the interpreter in between.
fn is_private(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = future.py();
    let dict = future.getattr(intern!(py, "__dict__"))?;
    Ok(!dict.contains(intern!(py, "_condition"))?)
}
