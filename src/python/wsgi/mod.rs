//! WSGI over an exchange: calls the application and carries its answer.
//!
//! [`Application`] is the handler that the server calls on its pool threads. It holds the
//! interpreter only while it touches Python objects and releases it around every use of the
//! exchange. Decides nothing that PEP 3333 or HTTP decide; those rules are in [`crate::wsgi`].
//! Rules of the flow: PEP 3333 "Specification Details", "Buffering and Streaming", "Error Handling".

mod access_log;
mod answering;
mod call;
mod context;
mod environ;
mod failing;
mod file_wrapper;
mod first_request;
mod in_flight;
mod input;
mod loan;
mod native_log;
mod overdue;
mod text;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use pyo3::prelude::*;
use pyo3::types::PyDict;

pub(super) use self::access_log::check_log_format;
use self::access_log::{AccessLog, Entry};
use self::answering::{Collected, is_plain};
use self::call::{Call, not_started};
use self::context::Context;
use self::environ::Environ;
use self::failing::refuse;
pub(super) use self::file_wrapper::FileWrapper;
use self::first_request::FirstRequest;
use self::in_flight::Owner;
pub(super) use self::in_flight::{keep_free, requests_in_flight};
use self::input::Input;
pub(super) use self::native_log::{AccessFilter, NativeLog};
use self::overdue::Report;
use super::child;
use super::detached::detached;
use super::imports;
use super::job_end;
use super::parallel;
use crate::locks::PerProcess;
use crate::scoreboard;
use crate::worker::limits;
use crate::wsgi::access_log::format::Subject;
use crate::wsgi::environ::Target;
use crate::wsgi::response::{Ending, Ready};
use crate::wsgi::{Delivery, Exchange, Handler, Refused};

/// How a server treats its application.
#[derive(Debug)]
pub(super) struct Application {
    app: Py<PyAny>,
    environ: Environ,
    access_log: Option<Arc<AccessLog>>,
    native_log: Option<Py<NativeLog>>,
    filter: Option<Py<AccessFilter>>,
    first: PerProcess<FirstRequest>,
    /// Requests may be given up.
    has_timeout: bool,
    owner: Owner,
    /// Called with a message and the keyword `exc_info`, an exception or `None`: a logger's `error`.
    log_error: Arc<Py<PyAny>>,
    shows_traceback: bool,
    is_lenient: bool,
}

/// What an [`Application`] is made from; see `Server` in `_native.pyi`.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "keywords of a Python signature"
)]
pub(super) struct Options<'a, 'py> {
    pub(super) app: Py<PyAny>,
    pub(super) log: Option<Py<PyAny>>,
    pub(super) log_format: &'a str,
    pub(super) log_enabled: Option<Py<PyAny>>,
    pub(super) native_log: Option<Py<NativeLog>>,
    pub(super) filter: Option<Py<AccessFilter>>,
    pub(super) has_timeout: bool,
    pub(super) log_error: Py<PyAny>,
    pub(super) debug: bool,
    pub(super) multiprocess: bool,
    pub(super) environ: Option<&'a Bound<'py, PyDict>>,
    pub(super) lenient: bool,
}

/// What has to be known of a request whose answer is on its way to a slow client.
struct Note {
    /// For the access log, and when the request came.
    entry: Option<(Entry, Instant)>,
    /// For that of the server's own.
    subject: Option<(Subject<'static>, Instant)>,
    status: u16,
    /// Length of the file that is sent, and the request line.
    file: Option<(u64, String)>,
}

/// What is left to do once nothing of Python is needed any more.
struct Unsent {
    answer: Ready,
    entry: Option<Entry>,
}

impl Application {
    pub(super) fn new(py: Python<'_>, options: Options<'_, '_>) -> PyResult<Self> {
        child::prepare(py)?;
        if options.has_timeout {
            imports::load_overdue(py)?;
        }
        let access_log = match options.log {
            Some(log) if !options.log_format.is_empty() => Some(Arc::new(AccessLog::new(
                py,
                log,
                options.log_enabled,
                options.log_format,
            )?)),
            _ => None,
        };
        Ok(Self {
            app: options.app,
            environ: Environ::new(py, options.multiprocess, options.environ)?,
            access_log,
            native_log: options.native_log,
            filter: options.filter,
            first: PerProcess::new(FirstRequest::default)?,
            has_timeout: options.has_timeout,
            owner: Owner::new(),
            log_error: Arc::new(options.log_error),
            shows_traceback: options.debug,
            is_lenient: options.lenient,
        })
    }

    /// Answers, and returns the status; except for a whole answer that nothing of Python has to outlive: the caller sends
    /// that after it has let the interpreter go, and need not wait to get it back.
    fn answer(
        &self,
        py: Python<'_>,
        exchange: &mut dyn Exchange,
        arrived: Option<Instant>,
    ) -> (Option<Unsent>, u16) {
        let _context = match Context::enter(py) {
            Ok(context) => context,
            Err(error) => {
                self.report(py, "cannot serve a request", &error);
                return (None, 500);
            }
        };
        let access_log = self
            .access_log
            .as_ref()
            .zip(arrived)
            .filter(|(log, arrived)| log.is_enabled(py, *arrived));
        let entry = access_log.map(|_| Entry::of(exchange.request(), exchange.endpoints()));

        let method = exchange.request().method().clone();
        let call = match Bound::new(py, Call::new(method.clone(), self.is_lenient)) {
            Ok(call) => call,
            Err(error) => {
                self.report(py, "cannot serve a request", &error);
                return (None, 500);
            }
        };
        let unsent = match Target::of(exchange.request()) {
            Ok(_) => {
                let ready = self.call_application(py, exchange, &call, &method);
                job_end::tell(py);
                ready
            }
            Err(error) => {
                refuse(py, exchange, &call, &method, error);
                None
            }
        };
        if let Some(answer) = unsent {
            let status = answer.status().as_u16();
            return (Some(Unsent { answer, entry }), status);
        }
        if call.get().is_given_up() {
            // Everything was said when it was.
            return (None, StatusCode::GATEWAY_TIMEOUT.as_u16());
        }
        let progress = call.get().progress();
        let file = progress.file.map(|length| {
            let line = crate::wsgi::access_log::request_line(exchange.request());
            (length, line)
        });
        let status = match progress.status {
            0 => StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
            status => status,
        };
        let arrived = arrived.filter(|_| self.is_logged(exchange, status));
        let note = Note {
            entry: entry.zip(arrived),
            subject: self.subject(exchange, arrived),
            status,
            file,
        };
        match exchange.delivery() {
            Some(delivery) => {
                self.conclude(py, &note, delivery);
                py.detach(|| self.conclude_natively(&note, delivery));
            }
            None if note.is_empty() => {}
            None => exchange.when_delivered(Box::new(note)),
        }
        (None, status)
    }

    /// True when an answer with that status has a line in the access logs.
    fn is_logged(&self, exchange: &dyn Exchange, status: u16) -> bool {
        let Some(filter) = &self.filter else {
            return true;
        };
        let filter = &filter.get().filter;
        filter.admits(exchange.request(), exchange.endpoints(), status)
    }

    /// Calls the application and sees its answer off.
    fn serve(&self, exchange: &mut dyn Exchange) {
        let began = Instant::now();
        let is_logged = self.access_log.is_some() || self.native_log.is_some();
        let arrived = is_logged.then_some(began);
        let mut waited = Duration::ZERO;
        let _inside = in_flight::enter();
        let _turn = self.first.get().enter();
        let (unsent, status) = Python::attach(|py| {
            waited = began.elapsed();
            self.answer(py, exchange, arrived)
        });
        let figures = scoreboard::current().figures();
        let Some(Unsent { answer, entry }) = unsent else {
            figures.answered(status, began.elapsed(), waited);
            return;
        };
        let (status, count) = (answer.status().as_u16(), answer.count());
        // A client that is gone has nothing more to hear, and the application has finished.
        let _ = answer.send(exchange);
        figures.answered(status, began.elapsed(), waited);
        let is_as_promised = count.ending() == Ending::Complete;
        if arrived.is_none() && is_as_promised {
            return;
        }
        let arrived = arrived.filter(|_| self.is_logged(exchange, status));
        let entry = entry.zip(arrived);
        let delivery = exchange.delivery();
        if let (Some(log), Some(arrived), Some(delivery)) = (&self.native_log, arrived, delivery) {
            let subject = Subject::of(exchange.request(), exchange.endpoints());
            log.get().put(&subject, status, delivery, arrived);
        }
        if delivery.is_some() && entry.is_none() && is_as_promised {
            return;
        }
        let note = Note {
            entry,
            subject: match delivery {
                Some(_) => None,
                None => self.subject(exchange, arrived),
            },
            status,
            file: None,
        };
        if note.needs_python() || !is_as_promised {
            Python::attach(|py| {
                self.report_length_mismatch(py, exchange, count.ending());
                if let Some(delivery) = delivery {
                    self.conclude(py, &note, delivery);
                }
            });
        }
        if delivery.is_none() && !note.is_empty() {
            exchange.when_delivered(Box::new(note));
        }
    }

    /// What the server's own access log says of a request that will be gone; `None` when it says
    /// nothing.
    fn subject(
        &self,
        exchange: &dyn Exchange,
        arrived: Option<Instant>,
    ) -> Option<(Subject<'static>, Instant)> {
        let (log, arrived) = self.native_log.as_ref().zip(arrived)?;
        let subject = Subject::of(exchange.request(), exchange.endpoints());
        Some((log.get().keep(subject), arrived))
    }

    /// An answer has come to its end, one way or the other: what needs no interpreter.
    fn conclude_natively(&self, note: &Note, delivery: Delivery) {
        if let (Some(log), Some((subject, arrived))) = (&self.native_log, &note.subject) {
            log.get().put(subject, note.status, delivery, *arrived);
        }
    }

    /// The same for what does.
    fn conclude(&self, py: Python<'_>, note: &Note, delivery: Delivery) {
        if let Some((declared, line)) = &note.file
            && delivery.is_file_short
        {
            let sent = delivery.sent;
            let problem = format!("gave {sent} of the {declared} bytes");
            self.log_length_mismatch(py, &problem, line);
        }
        if let (Some(log), Some((entry, arrived))) = (&self.access_log, &note.entry) {
            log.write(py, entry, note.status, delivery, arrived.elapsed());
        }
    }

    /// Calls the application and sends what it answers, whatever that is, or returns it.
    fn call_application(
        &self,
        py: Python<'_>,
        exchange: &mut dyn Exchange,
        call: &Bound<'_, Call>,
        method: &Method,
    ) -> Option<Ready> {
        let environ = match self.environ(py, exchange, call) {
            Ok(environ) => environ,
            Err(error) => {
                self.fail(py, exchange, call, method, &error);
                return None;
            }
        };
        let lent = call.get().loan.lend(exchange);
        if self.has_timeout {
            in_flight::watch(self.owner, call.clone().unbind());
        }
        let result = child::call(py, || self.app.bind(py).call1((environ, call)));
        let (answer, result) = match result {
            Ok(result) => (self.collect(call.get(), &result), Some(result)),
            Err(error) => (Err(error), None),
        };
        lent.revoke(py);
        let has_close = result.as_ref().is_some_and(|result| !is_plain(result));
        if self.has_timeout
            && let Some(ago) = in_flight::unwatch()
        {
            self.take_back(py, exchange, ago);
            if let Some(result) = result.filter(|_| has_close) {
                self.close(py, exchange, &result);
            }
            return None;
        }
        match answer {
            Ok(Collected::Whole(head, body)) => {
                let ready = Ready::new(head, body, method);
                if !has_close && call.get().progress().body_error.is_none() {
                    call.get().record(ready.status().as_u16(), ready.count());
                    return Some(ready);
                }
                self.respond(py, exchange, call.get(), ready);
            }
            Ok(Collected::Sent(ending)) => self.report_length_mismatch(py, exchange, ending),
            Err(error) => self.fail(py, exchange, call, method, &error),
        }
        if let Some(result) = result.filter(|_| has_close) {
            self.close(py, exchange, &result);
        }
        None
    }

    /// The calling thread has come back from a request that was given up.
    fn take_back(&self, py: Python<'_>, exchange: &dyn Exchange, ago: Duration) {
        if let Some(thread) = in_flight::own_thread() {
            overdue::thread_back(py, thread);
        }
        let line = crate::wsgi::access_log::request_line(exchange.request());
        self.log(py, &overdue::came_back(&line, ago), None);
    }

    /// Gives up a request, as far as the client is concerned. `None` when it is not overdue, or when
    /// its answer is complete.
    fn give_up(&self, call: &Call, age: Duration, timeout: Duration) -> Option<Report> {
        // While the loan is taken the thread is in the server's hands, most often waiting for the
        // client, which has a timeout of its own.
        let given_up = call.loan.try_with(|exchange| {
            if age.saturating_sub(exchange.waited()) < timeout {
                return None;
            }
            let given_up = exchange.give_up()?;
            let status = given_up
                .status
                .map_or_else(|| call.progress().status, |status| status.as_u16());
            let (request, endpoints) = (exchange.request(), exchange.endpoints());
            let delivery = given_up.delivery;
            let is_logged = self.is_logged(exchange, status);
            if let (Some(log), Some(arrived)) = (&self.native_log, Instant::now().checked_sub(age))
                && is_logged
            {
                let subject = Subject::of(request, endpoints);
                log.get().put(&subject, status, delivery, arrived);
                log.get().flush();
            }
            let has_entry = is_logged && self.access_log.is_some();
            Some(Report {
                line: crate::wsgi::access_log::request_line(request),
                entry: has_entry.then(|| Entry::of(request, endpoints)),
                status,
                delivery,
            })
        });
        let report = given_up.flatten()?;
        call.record_given_up();
        overdue::thread_lost();
        Some(report)
    }

    fn environ<'py>(
        &self,
        py: Python<'py>,
        exchange: &dyn Exchange,
        call: &Bound<'py, Call>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let request = exchange.request();
        let Ok(target) = Target::of(request) else {
            return Err(not_started()); // answered by refuse() before
        };
        let input = if exchange.is_bodiless() {
            None
        } else {
            let input = Input::new(Some(call.clone().unbind()), exchange.body_length());
            Some(Bound::new(py, input)?)
        };
        self.environ
            .build(py, request, exchange.endpoints(), &target, input)
    }
}

impl Note {
    /// True when nothing has to be done once the answer is over.
    fn is_empty(&self) -> bool {
        !self.needs_python() && self.subject.is_none()
    }

    fn needs_python(&self) -> bool {
        self.entry.is_some() || self.file.is_some()
    }
}

impl Handler for Application {
    fn handle(&self, exchange: &mut dyn Exchange) {
        self.serve(exchange);
        limits::request_ended();
    }

    fn give_up_overdue(&self, timeout: Duration) -> (Vec<i32>, Option<Duration>) {
        let mut reports = Vec::new();
        let (overdue, next) = in_flight::give_up_overdue(self.owner, timeout, |call, age| {
            let report = self.give_up(call, age, timeout);
            let is_given_up = report.is_some();
            reports.extend(report);
            is_given_up
        });
        let threads = overdue.iter().map(in_flight::Overdue::kernel_id).collect();
        if !overdue.is_empty() {
            let overdue = overdue.into_iter().zip(reports).collect();
            overdue::report(overdue, &self.log_error, self.access_log.as_ref());
        }
        (threads, next)
    }

    fn has_put_off(&self) -> bool {
        let log = self.native_log.as_ref();
        log.is_some_and(|log| log.get().has_waiting())
    }

    fn catch_up(&self, is_idle: bool) {
        if let Some(log) = &self.native_log
            && (is_idle || log.get().is_overdue())
        {
            log.get().flush();
        }
    }

    fn delivered(&self, note: Box<dyn Any + Send>, delivery: Delivery) {
        if let Ok(note) = note.downcast::<Note>() {
            self.conclude_natively(&note, delivery);
            if note.needs_python() {
                Python::attach(|py| self.conclude(py, &note, delivery));
            }
        }
    }

    fn refused(&self, refused: &Refused) {
        let figures = scoreboard::current().figures();
        figures.refused(refused.status.as_u16());
        let filter = self.filter.as_ref();
        if filter.is_some_and(|filter| !filter.get().filter.admits_refused(refused)) {
            return;
        }
        if let Some(log) = &self.native_log {
            log.get().put_refused(refused);
        }
        let Some(log) = &self.access_log else {
            return;
        };
        Python::attach(|py| {
            if log.is_enabled(py, Instant::now()) {
                let entry = Entry::of_refused(refused);
                let status = refused.status.as_u16();
                let delivery = Delivery {
                    sent: refused.sent,
                    is_whole: true,
                    is_file_short: false,
                };
                log.write(py, &entry, status, delivery, refused.wall);
            }
        });
    }

    fn at_once(&self) -> usize {
        parallel::at_once()
    }

    fn thread(&self, body: &mut dyn FnMut()) {
        // A thread state made for each request would cost more than the request.
        Python::attach(|py| {
            if let Err(error) = introduce_thread(py) {
                error.write_unraisable(py, None);
            }
            detached(py, body);
            if let Err(error) = forget_thread(py) {
                error.write_unraisable(py, None);
            }
        });
    }
}

/// As that of [`crate::python::executor`].
pub(super) fn make_types(py: Python<'_>) {
    let _ = py.get_type::<Call>();
    let _ = py.get_type::<Input>();
}

/// Gives the pool thread its own name in Python, where logs would call it `Dummy-7`.
fn introduce_thread(py: Python<'_>) -> PyResult<()> {
    let current = std::thread::current();
    let name = current.name().unwrap_or("osloxide");
    parallel::learn(py)?;
    let threading = py.import("threading")?;
    in_flight::thread_begins(threading.call_method0("get_ident")?.extract()?);
    threading
        .call_method0("current_thread")?
        .setattr("name", name)
}

/// Takes the pool thread off Python's list of threads. Before 3.13 nobody else does that for a
/// thread that Python has not started.
fn forget_thread(py: Python<'_>) -> PyResult<()> {
    in_flight::thread_ends();
    let threading = py.import("threading")?;
    if let Some(active) = threading.getattr_opt("_active")? {
        active.call_method1("pop", (threading.call_method0("get_ident")?, py.None()))?;
    }
    Ok(())
}
