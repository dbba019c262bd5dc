//! What the broker is not asked for, since it has closed connections over that.
//!
//! Owns for how long, and which requests fail meanwhile. Every other request goes on.
//!
//! Rules: docs/rpc.md.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::methods::Refusal;
use super::super::refusals::{MOST_ENDED, Verdict};
use super::super::{Event, Request};
use super::{Need, State};

/// How long nothing is asked for over which the broker has closed the connection: what needs it fails in
/// that time, and the connection is there for all else.
const BARRED_FOR: Duration = Duration::from_secs(30);

impl State {
    /// The broker has closed the connection. Where that was over what it was asked for, or may have been
    /// for the last time, what needs that fails; what is to be said of it.
    pub(in crate::amqp::client) fn blame(
        &mut self,
        refusal: &Refusal,
        now: Instant,
    ) -> Option<String> {
        let asked = self.asked.clone()?;
        let is_final = match refusal.verdict() {
            Verdict::Other => return None,
            Verdict::Final => true,
            Verdict::Perhaps => self.count_blame(&asked) >= MOST_ENDED,
        };
        is_final.then(|| self.bar(asked, refusal, now))
    }

    fn count_blame(&mut self, asked: &Need) -> u32 {
        if let Some((_, count)) = self.blamed.iter_mut().find(|(need, _)| need == asked) {
            *count += 1;
            return *count;
        }
        self.blamed.push((asked.clone(), 1));
        1
    }

    /// What has *need* fails for a while, and what has it now; what is to be said of it.
    pub(in crate::amqp::client) fn bar(
        &mut self,
        need: Need,
        refusal: &Refusal,
        now: Instant,
    ) -> String {
        let why = refusal.to_string();
        self.asked.take_if(|asked| *asked == need);
        self.put_off.retain(|other| *other != need);
        self.blamed.retain(|(other, _)| *other != need);
        if let Need::Binding { exchange, name } = &need {
            self.bindings.settle(&exchange.name, name, false);
        }
        let mut refuse = |request: &Arc<Request>| {
            let is_meant = need.may_be_of(request);
            if is_meant {
                request.end(Event::Failed(why.clone()));
            }
            !is_meant
        };
        self.waiting.retain(&mut refuse);
        self.suspects.retain(refuse);
        let seconds = BARRED_FOR.as_secs();
        let text =
            format!("refused by the broker, and not asked for again before {seconds} s: {why}");
        self.barred.push((need, now + BARRED_FOR, why));
        text
    }

    pub(super) fn is_barred(&self, need: &Need, now: Instant) -> bool {
        let mut bars = self.barred.iter();
        bars.any(|(other, until, _)| other == need && now < *until)
    }

    /// Why *request* cannot be sent at present.
    pub(super) fn bar_of(&self, request: &Request, now: Instant) -> Option<&str> {
        let mut bars = self.barred.iter();
        let bar = bars.find(|(need, until, _)| now < *until && need.may_be_of(request));
        bar.map(|(.., why)| why.as_str())
    }

    pub(super) fn lift_bars(&mut self, now: Instant) {
        let lifted = self.barred.extract_if(.., |(_, until, _)| *until <= now);
        if lifted.into_iter().any(|(need, ..)| need == Need::Replies) {
            self.wants_replies = !self.calls.is_empty();
        }
    }
}
