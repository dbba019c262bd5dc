//! `Executor` for Python: calls in, futures out, on the threads of [`crate::rpc`].
//!
//! A future is a `concurrent.futures.Future` whose condition is made only when somebody asks for
//! it (python/osloxide/rpc.py). As long as nobody has, a thread that finishes the job may write the
//! result without taking a lock: the interpreter is held from the look to the last write, and no
//! Python code runs in between.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::signals;
use super::wsgi::loan;
use crate::rpc::{self, Refused, Work};

/// How long a submitter waits for room before it lets Python signal handlers run.
const PATIENCE: Duration = Duration::from_millis(100);

/// One call whose result a future awaits.
struct Job {
    future: Py<PyAny>,
    function: Py<PyAny>,
    arguments: Py<PyTuple>,
    keywords: Option<Py<PyDict>>,
}

/// What the pool's threads do.
#[derive(Debug)]
struct Calls {
    /// Beginning of the names of threads.
    name: String,
    numbers: AtomicU64,
}

/// Runs callables on elastic native threads.
#[pyclass(frozen, weakref, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct Executor {
    engine: rpc::Executor<Calls>,
    make_future: Py<PyAny>,
    has_bound: bool,
    /// Process that made it: its threads exist nowhere else.
    process: u32,
}

#[pymethods]
impl Executor {
    #[new]
    #[pyo3(signature = (make_future, max_workers, *, max_queued=0, thread_name="rpc"))]
    fn new(
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
        let calls = Calls {
            name: thread_name.to_owned(),
            numbers: AtomicU64::new(0),
        };
        Ok(Self {
            engine: rpc::Executor::new(calls, max_workers, max_queued),
            make_future,
            has_bound: max_queued != 0,
            process: std::process::id(),
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
        self.check_process()?;
        if !function.is_callable() {
            return Err(PyTypeError::new_err(format!(
                "{} is not callable; give a function and its arguments",
                function.repr()?
            )));
        }
        let future = self.make_future.call0(py)?;
        let mut job = Job {
            future: future.clone_ref(py),
            function: function.unbind(),
            arguments: arguments.unbind(),
            keywords: keywords.map(Bound::unbind),
        };
        loop {
            match self.engine.submit(job) {
                Ok(()) => return Ok(future),
                Err(Refused::Full { job: back, .. }) if self.has_bound => job = back,
                Err(refused) => return Err(refusal(&refused)),
            }
            py.detach(|| self.engine.wait_for_room(Some(PATIENCE)));
            py.check_signals()?;
        }
    }

    #[pyo3(signature = (cancel=false))]
    fn close<'py>(&self, py: Python<'py>, cancel: bool) -> PyResult<Bound<'py, PyList>> {
        self.check_process()?;
        let back = self.engine.close(cancel);
        PyList::new(py, back.into_iter().map(|job| job.future))
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.check_process()?;
        let deadline = match timeout {
            Some(seconds) => signals::deadline_in("timeout", seconds)?,
            None => None,
        };
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
        fields.set_item("most_queued", stats.most_queued)?;
        fields.set_item("begun", stats.begun)?;
        fields.set_item("cancelled", stats.cancelled)?;
        fields.set_item("oldest_wait", stats.oldest_wait.as_secs_f64())?;
        fields.set_item("total_wait", stats.total_wait.as_secs_f64())?;
        Ok(fields)
    }
}

impl Executor {
    fn check_process(&self) -> PyResult<()> {
        let own = std::process::id();
        if own == self.process {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(format!(
            "this executor belongs to process {}, and its threads did not follow into process {own}; \
             make executors after the fork",
            self.process
        )))
    }
}

fn refusal(refused: &Refused<Job>) -> PyErr {
    PyRuntimeError::new_err(match refused {
        // The words of concurrent.futures, which callers match.
        Refused::Closed(_) => "cannot schedule new futures after shutdown".to_owned(),
        Refused::Full { bound, .. } => format!("{bound} jobs are queued already; submit fewer"),
        Refused::NoThread { source, .. } => format!(
            "cannot run the job: the kernel gives this process no thread ({source}); raise its \
             limits (ulimit -u, pids.max of its cgroup)"
        ),
    })
}

impl Work for Calls {
    type Job = Job;

    fn run(&self, job: Job) {
        Python::attach(|py| {
            let future = job.future.bind(py);
            if let Err(error) = job.run(py) {
                // Somebody else has finished or broken the future: it is not ours to judge.
                error.write_unraisable(py, Some(future));
            }
            drop(job);
        });
    }

    fn thread(&self, body: &mut dyn FnMut()) {
        Python::attach(|py| {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = adopt(py, &format!("{}_{number}", self.name)) {
                error.write_unraisable(py, None);
            }
            loan::detached(py, body);
            if let Err(error) = disown(py) {
                error.write_unraisable(py, None);
            }
        });
    }
}

impl Job {
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let future = self.future.bind(py);
        let (state, running) = (intern!(py, "_state"), intern!(py, "RUNNING"));
        if is_private(future)? {
            future.setattr(state, running)?;
        } else {
            let runs = future.call_method0(intern!(py, "set_running_or_notify_cancel"))?;
            if !runs.is_truthy()? {
                return Ok(());
            }
        }
        let keywords = self.keywords.as_ref().map(|keywords| keywords.bind(py));
        match self
            .function
            .bind(py)
            .call(self.arguments.bind(py), keywords)
        {
            Ok(result) => finish(
                future,
                intern!(py, "_result"),
                intern!(py, "set_result"),
                result,
            ),
            Err(error) => finish(
                future,
                intern!(py, "_exception"),
                intern!(py, "set_exception"),
                error.into_value(py).into_bound(py).into_any(),
            ),
        }
    }
}

/// True while nobody but the executor can be inside the future.
///
/// NOTE: whoever acts on the answer must not let go of the interpreter in between. `intern!` does
/// when it makes its string, so callers intern what they need first.
fn is_private(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = future.py();
    let dict = future.getattr(intern!(py, "__dict__"))?;
    Ok(!dict.contains(intern!(py, "_condition"))?)
}

fn finish(
    future: &Bound<'_, PyAny>,
    field: &Bound<'_, PyString>,
    method: &Bound<'_, PyString>,
    value: Bound<'_, PyAny>,
) -> PyResult<()> {
    let py = future.py();
    let (state, finished) = (intern!(py, "_state"), intern!(py, "FINISHED"));
    if is_private(future)? {
        future.setattr(field, value)?;
        future.setattr(state, finished)
    } else {
        future.call_method1(method, (value,)).map(drop)
    }
}

/// Makes the calling thread one of Python's: listed, named, traced like any other.
fn adopt(py: Python<'_>, name: &str) -> PyResult<()> {
    let threading = py.import("threading")?;
    // Threads that threading did not start are entered in its list when they first ask.
    let thread = threading.call_method0("current_thread")?;
    thread.setattr("name", name)?;
    for (reader, setter) in [("gettrace", "settrace"), ("getprofile", "setprofile")] {
        let hook = threading.call_method0(reader)?;
        if !hook.is_none() {
            py.import("sys")?.call_method1(setter, (hook,))?;
        }
    }
    Ok(())
}

/// Takes the calling thread off threading's list, which before CPython 3.12 nobody else does.
fn disown(py: Python<'_>) -> PyResult<()> {
    let threading = py.import("threading")?;
    if let Ok(active) = threading.getattr("_active") {
        let ident = threading.call_method0("get_ident")?;
        active.call_method1("pop", (ident, py.None()))?;
    }
    Ok(())
}
