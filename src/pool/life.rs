//! The life of a pool thread: from role to role, from job to job, until the pool ends.
//!
//! Owns what leader, processing and idle threads do, and who starts or wakes the next thread. The
//! standby's watch has a file of its own, [`super::standby`].

use super::state::{AlarmTime, IdleThread, State};
use super::sync::{Instant, MutexGuard};
use super::{Shared, Source, threads};
use nix::unistd::Pid;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long an idle thread stays beyond leader and standby.
const RETIRE_AFTER: Duration = Duration::from_secs(15);

impl<S: Source> Shared<S> {
    /// The life of one pool thread.
    fn live(self: &Arc<Self>) {
        let idle_thread = Arc::new(IdleThread::default());
        let own = threads::own_id();
        let mut batch = Vec::new();
        let at_once = self.source.at_once();
        let mut state = self.state.lock();
        state.gate.set_at_once(at_once);
        loop {
            if state.is_ending && state.ready.is_empty() {
                break;
            }
            if !state.is_led {
                self.lead(&mut state, own, &mut batch);
            } else if state.may_relieve() {
                state.takeovers += 1;
                self.lead(&mut state, own, &mut batch);
            } else if !state.has_standby {
                self.stand_by(&mut state);
            } else if let Some(job) = state.help(own) {
                self.work(&mut state, own, job, &mut batch);
            } else if !Self::idle(&mut state, &idle_thread) {
                break;
            }
        }
        state.threads -= 1;
        state.leaving += 1;
    }

    /// A thread is over, whatever the source had wrapped around its life.
    fn left(&self, has_lived: bool) {
        let mut state = self.state.lock();
        if has_lived {
            state.leaving = state.leaving.saturating_sub(1);
        } else {
            state.threads -= 1;
        }
        // The last one speaks under the lock: nobody may start the pool between the count and it.
        if state.threads == 0 && state.leaving == 0 && state.is_ending {
            self.source.ended();
        }
    }

    /// Waits at the source and runs what comes, until leadership is lost or handed on.
    fn lead(
        self: &Arc<Self>,
        state: &mut MutexGuard<'_, State<S::Job>>,
        own: Pid,
        batch: &mut Vec<S::Job>,
    ) {
        state.term += 1;
        state.is_led = true;
        state.leader = Some(own);
        state.leader_call = 0;
        let term = state.term;
        loop {
            loop {
                let limit = state.gate.limit();
                let Some(job) = state.admit(own) else {
                    break;
                };
                let now = Instant::now();
                // Jobs that were let in by their age must not wait for each other as well.
                let is_stalled = state.running.len() > limit;
                let has_free_cpu = state.gate.has_free_cpu(state.running.len());
                let hands_on = state.gate.is_eager(now) || is_stalled || has_free_cpu;
                if hands_on && self.hand_on(state) {
                    self.work(state, own, job, batch);
                    return;
                }
                state.calls += 1;
                state.leader_call = state.calls;
                state.call_since = now;
                self.put_off(state, now);
                self.ensure_standby(state);
                let next = self.run_counted(state, job);
                if !self.finish(state, own, next) || state.term != term {
                    return;
                }
                state.leader_call = 0;
                state.gate.not_taken_over();
            }
            if !state.ready.is_empty() {
                // Full: processing threads take what waits as they end, and the standby asks for more room.
                self.ensure_standby(state);
            }
            if state.is_ending {
                break;
            }
            // Jobs that block do not run one after the other: none should wait for its batch.
            let most = if state.gate.was_eager() {
                1
            } else {
                usize::MAX
            };
            let free = state.free();
            state.told_free = Some(free);
            MutexGuard::unlocked(state, || {
                self.contain(|| self.source.wait(batch, most, free));
            });
            state.told_free = None;
            state.take_in(batch);
            if state.ready.is_empty() && self.source.is_over() {
                state.is_ending = true;
                for idle_thread in &state.idle {
                    idle_thread.condvar.notify_one();
                }
                self.wake_standby(state);
                break;
            }
        }
        state.is_led = false;
        state.leader = None;
    }

    /// Runs jobs without leading, as long as there are any.
    fn work(
        self: &Arc<Self>,
        state: &mut MutexGuard<'_, State<S::Job>>,
        own: Pid,
        first: S::Job,
        batch: &mut Vec<S::Job>,
    ) {
        let mut job = Some(first);
        while let Some(current) = job {
            if state.leader_call != 0 || !state.ready.is_empty() {
                self.ensure_standby(state);
            }
            let next = self.run_counted(state, current);
            if !self.finish(state, own, next) || !state.is_led {
                return;
            }
            job = state.help(own);
            if job.is_none() && state.gate.was_eager() && state.may_glance() {
                MutexGuard::unlocked(state, || self.contain(|| self.source.glance(batch)));
                state.take_in(batch);
                job = state.help(own);
            }
        }
    }

    /// A job has ended; see [`State::finish`].
    fn finish(
        &self,
        state: &mut MutexGuard<'_, State<S::Job>>,
        thread: Pid,
        next: Option<S::Job>,
    ) -> bool {
        let is_counted = state.finish(thread, next);
        self.tell_of_room(state);
        is_counted
    }

    /// Tells the source where its leader waits without room for what it finds, and there is some now.
    pub(super) fn tell_of_room(&self, state: &mut State<S::Job>) {
        if state.told_free == Some(0) && state.free() > 0 {
            state.told_free = None;
            self.source.note_room();
        }
    }

    /// Does something of the source's; a panic is counted and costs nothing else.
    fn contain<T: Default>(&self, work: impl FnOnce() -> T) -> T {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            self.panics.fetch_add(1, Ordering::Relaxed);
            T::default()
        })
    }

    /// Runs a job without the lock, and counts how long it lasts where that decides something.
    fn run_counted(
        &self,
        state: &mut MutexGuard<'_, State<S::Job>>,
        job: S::Job,
    ) -> Option<S::Job> {
        let since = (state.gate.at_once() > 1).then(Instant::now);
        let before = (!state.ready.is_settled()).then(threads::own_cpu_time);
        let next = MutexGuard::unlocked(state, || self.run(job));
        if let Some(before) = before {
            let computed = threads::own_cpu_time().saturating_sub(before);
            state.count_first(computed);
        }
        if let Some(since) = since {
            let now = Instant::now();
            state
                .gate
                .count_length(now.saturating_duration_since(since));
        }
        next
    }

    fn run(&self, job: S::Job) -> Option<S::Job> {
        self.contain(|| self.source.run(job))
    }

    /// Sleeps until there is something to do; false when the thread should leave.
    fn idle(state: &mut MutexGuard<'_, State<S::Job>>, idle_thread: &Arc<IdleThread>) -> bool {
        state.idle.push(idle_thread.clone());
        let timed_out = idle_thread
            .condvar
            .wait_for(state, RETIRE_AFTER)
            .timed_out();
        // Whoever wakes a thread takes it off the stack; after a timeout it still is there.
        let was_woken = match state
            .idle
            .iter()
            .position(|other| Arc::ptr_eq(other, idle_thread))
        {
            Some(at) => {
                state.idle.remove(at);
                false
            }
            None => true,
        };
        was_woken || !timed_out
    }

    /// Gives up leadership to another thread; false when there is none to be had.
    fn hand_on(self: &Arc<Self>, state: &mut MutexGuard<'_, State<S::Job>>) -> bool {
        let leader = state.leader.take();
        state.is_led = false;
        if self.start_leader(state).is_ok() {
            state.leader_call = 0;
            true
        } else {
            state.leader = leader;
            state.is_led = true;
            false
        }
    }

    /// Wakes or starts a thread that will find leadership vacant.
    pub(super) fn start_leader(
        self: &Arc<Self>,
        state: &mut MutexGuard<'_, State<S::Job>>,
    ) -> io::Result<()> {
        if state.arriving() > 0 {
            Ok(())
        } else if let Some(idle_thread) = state.idle.pop() {
            idle_thread.condvar.notify_one();
            Ok(())
        } else if state.has_standby {
            self.wake_standby(state);
            Ok(())
        } else {
            self.spawn(state)
        }
    }

    /// Wakes or starts as many threads as the gate admits jobs that wait.
    pub(super) fn start_processing_threads(
        self: &Arc<Self>,
        state: &mut MutexGuard<'_, State<S::Job>>,
    ) {
        let wanted = state
            .admissible(Instant::now())
            .saturating_sub(state.arriving());
        for _ in 0..wanted {
            if let Some(idle_thread) = state.idle.pop() {
                idle_thread.condvar.notify_one();
            } else if self.spawn(state).is_err() {
                break;
            }
        }
    }

    /// The leader begins a job `now`: an alarm that was set for an earlier one would come too early.
    /// Put off from time to time, the alarm stays silent while one short job follows the other.
    fn put_off(&self, state: &mut State<S::Job>, now: Instant) {
        let patience = state.patience();
        if let AlarmTime::At(at) = state.alarm_time
            && at < now + patience
            // Where more jobs run the gate wants its looks.
            && !state.gate.is_crowded(state.running.len())
            && (state.gate.is_of_one() || state.running.len() < state.gate.limit())
        {
            self.set_alarm(state, now + 2 * patience, 2 * patience);
        }
    }

    /// Makes sure that somebody looks at the leader's job, should it last, and at what is queued.
    pub(super) fn ensure_standby(self: &Arc<Self>, state: &mut MutexGuard<'_, State<S::Job>>) {
        if state.alarm_time == AlarmTime::Never {
            let patience = state.patience();
            self.set_alarm(state, Instant::now() + patience, patience);
        }
        if state.has_standby || state.arriving() > 0 {
            // There is one, or the first to arrive becomes it.
        } else if let Some(idle_thread) = state.idle.pop() {
            idle_thread.condvar.notify_one();
        } else {
            // Without a standby jobs run one by one, no worse.
            let _ = self.spawn(state);
        }
    }

    pub(super) fn set_alarm(&self, state: &mut State<S::Job>, at: Instant, delay: Duration) {
        state.alarm_time = AlarmTime::At(at);
        self.alarm.set_in(delay);
    }

    /// Wakes the standby at once.
    pub(super) fn wake_standby(&self, state: &mut State<S::Job>) {
        state.alarm_time = AlarmTime::Now;
        self.alarm.set_in(Duration::ZERO);
    }

    fn spawn(self: &Arc<Self>, state: &mut MutexGuard<'_, State<S::Job>>) -> io::Result<()> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let shared = self.clone();
        threads::start(format!("{}-{number}", self.name), move || {
            let mut has_lived = false;
            let life = || {
                shared.source.thread(&mut || {
                    if !std::mem::replace(&mut has_lived, true) {
                        shared.live();
                    }
                });
            };
            if catch_unwind(AssertUnwindSafe(life)).is_err() {
                shared.panics.fetch_add(1, Ordering::Relaxed);
            }
            shared.left(has_lived);
        })?;
        state.threads += 1;
        Ok(())
    }
}
