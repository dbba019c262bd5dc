//! The state of a client under schedules by chance, with a broker that confirms, refuses, returns and
//! forgets as brokers may, and connections that are lost at any moment.
//!
//! Owns the simulated broker and the promises of docs/simulation.md that concern it. Everything that
//! happens is drawn from a seed, time included; a failure names it, and
//! `OSLOXIDE_SIM_SEED=N cargo test --no-default-features --features amqp schedules` repeats it.
#![allow(
    clippy::print_stderr,
    reason = "a failed schedule says by which seed it comes again"
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::methods::{NOT_FOUND, Properties, Refusal};
use super::state::{Need, Outlet, State};
use super::suspicion::Loss;
use super::*;
use crate::amqp::frames::Reader;

const SCHEDULES: u64 = 3_000;
const STEPS: usize = 120;
const FRAME_MAX: usize = 4096;
/// So many connections after the last fault each request is written but for those that need the answer
/// which never comes: on the first one another need may still come last that was not answered before.
const ROUNDS: usize = 4;

/// xorshift64*.
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(2) | 1)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(drawn % bound.max(1) as u64).unwrap()
    }

    pub(super) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// The client's end of a connection.
#[derive(Clone, Default)]
struct Wire {
    bytes: Arc<Mutex<Vec<u8>>>,
    is_full: Arc<AtomicBool>,
}

impl Outlet for Wire {
    fn queue(&self, frames: Vec<u8>) {
        self.bytes.lock().extend(frames);
    }

    fn unsent(&self) -> u64 {
        u64::from(self.is_full.load(Ordering::Relaxed)) * u64::MAX
    }
}

/// A message on its way, or at the broker.
#[derive(Clone, Copy)]
struct Sent {
    channel: u16,
    number: u64,
}

#[derive(Default)]
struct Channel {
    exchange: String,
    /// What the broker has got and not settled, by tag.
    unsettled: BTreeMap<u64, u64>,
    last_tag: u64,
}

/// Of replies.
struct Consumer {
    channel: u16,
    delivered: u64,
    acknowledged: u64,
}

struct World {
    chance: Chance,
    now: Instant,
    state: State,
    requests: BTreeMap<u64, Arc<Request>>,
    wire: Option<Wire>,
    has_connected: bool,
    last_channel: u16,
    channels: HashMap<u16, Channel>,
    consumer: Option<Consumer>,
    /// Written by the client, not read by the broker.
    on_the_way: VecDeque<Sent>,
    /// Exchanges without a queue for what is sent to them.
    unbound: HashSet<String>,
    /// How often a queue took it.
    taken: HashMap<u64, u32>,
    /// The client knows that the broker is responsible for it, or that a server has answered.
    settled: HashSet<u64>,
    /// No queue took it, and the client knows.
    dropped: HashSet<u64>,
    published: HashSet<u64>,
    /// What the broker did not answer, and a request that has waited for it ever since.
    unanswered: Vec<(Need, u64)>,
    /// What it does not answer for a while though nothing else fails any more.
    stubborn: Option<Need>,
    is_recovering: bool,
    /// Of those with the same needs and the same destination, which keep their order.
    last_first: HashMap<(String, String, bool, bool), u64>,
    /// Of all replies.
    outbox: Arc<Outbox>,
    failures: Arc<Failures>,
    /// Replies that have failed, as they were told.
    told: Arc<Mutex<Vec<u64>>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let (failures, told) = (
            Arc::<Failures>::default(),
            Arc::<Mutex<Vec<u64>>>::default(),
        );
        let failed = Arc::clone(&told);
        let tell = move |reply: FailedReply| failed.lock().push(reply.queue.parse().unwrap());
        Self {
            outbox: Arc::new(Outbox::new(Arc::clone(&failures), Box::new(tell))),
            failures,
            told,
            chance: Chance::of(seed),
            now: Instant::now(),
            state: State::default(),
            requests: BTreeMap::new(),
            wire: None,
            has_connected: false,
            last_channel: 0,
            channels: HashMap::new(),
            consumer: None,
            on_the_way: VecDeque::new(),
            unbound: HashSet::new(),
            taken: HashMap::new(),
            settled: HashSet::new(),
            dropped: HashSet::new(),
            published: HashSet::new(),
            unanswered: Vec::new(),
            stubborn: None,
            is_recovering: false,
            last_first: HashMap::new(),
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            match self.chance.below(12) {
                0..=2 => self.send(),
                3 | 4 => self.flush(),
                5 => self.arrive(),
                6 | 7 => self.settle(),
                8 => self.reply(),
                9 => self.lose_or_connect(),
                10 => self.close_channel(),
                _ => self.change(),
            }
            self.read();
        }
        self.recover();
    }

    fn send(&mut self) {
        let kind = self.chance.below(6);
        let exchange = Exchange {
            name: format!("exchange{}", self.chance.below(2)),
            ..Exchange::default()
        };
        let number = self.state.next_number();
        let mut message = Message {
            exchange,
            routing_key: "topic".to_owned(),
            body: vec![b' '; self.chance.below(9000)],
            retries: (self.chance.one_in(8)).then_some(1),
            ..Message::default()
        };
        match kind {
            0 => message.msg_id = Some(number.to_string()),
            1 => message.is_mandatory = true,
            2 => {
                message.exchange.name = "fanout".to_owned();
                message.exchange.kind = ExchangeType::Fanout;
            }
            3 => message.default_queue = Some(Table::new()),
            4 => {
                message.exchange.name.clear();
                message.routing_key = number.to_string();
                message.is_mandatory = true;
                message.missing_for = Some(Duration::from_secs(30));
                message.retries = None;
            }
            _ => {}
        }
        let outbox = (kind == 4).then(|| Arc::clone(&self.outbox));
        if let Some(outbox) = &outbox {
            outbox.enter();
        }
        let request = Arc::new(Request {
            outbox,
            message,
            number,
            progress: Mutex::new(Progress::default()),
            changed: Condvar::new(),
        });
        self.requests.insert(number, Arc::clone(&request));
        self.state.accept(&request);
    }

    /// What the thread of a client does once it has read everything.
    fn flush(&mut self) {
        if self.wire.is_none() {
            return;
        }
        for _ in 0..8 {
            let need = self.state.flush(self.now);
            self.read();
            self.check_need(need.as_ref());
            if let Some(need) = need.as_ref().filter(|need| !self.answers(need)) {
                self.put_off(need);
                self.lose();
                return;
            }
            if let Some(need) = &need {
                self.unanswered.retain(|(unanswered, _)| unanswered != need);
            }
            if need.is_some() && self.chance.one_in(4) {
                // The broker takes its time to answer, and may have no channel left.
                if self.chance.one_in(2) {
                    self.give_up_channel();
                }
                self.change();
                let is_blocked = self.chance.one_in(4);
                self.state.write_waiting(self.now, is_blocked);
                self.read();
                self.state.keep_routes();
            }
            let is_refused = self.chance.one_in(12);
            let refusal = Refusal {
                code: 403,
                text: "ACCESS_REFUSED".to_owned(),
                ..Refusal::default()
            };
            match need {
                None => {
                    self.state.acknowledge(Some(self.now));
                    self.read();
                    return;
                }
                Some(Need::Replies) => {
                    self.last_channel += 1;
                    self.consumer = Some(Consumer {
                        channel: self.last_channel,
                        delivered: 0,
                        acknowledged: 0,
                    });
                    self.state.set_replies(true);
                }
                Some(Need::Route(exchange)) if is_refused => {
                    self.state.refuse(&exchange.name, None, &refusal);
                }
                Some(Need::Route(exchange)) => {
                    self.last_channel += 1;
                    let channel = Channel {
                        exchange: exchange.name.clone(),
                        ..Channel::default()
                    };
                    self.channels.insert(self.last_channel, channel);
                    self.state.add_route(exchange.name, self.last_channel);
                }
                Some(Need::Queue { exchange, name, .. }) if is_refused => {
                    self.state.refuse(&exchange.name, Some(&name), &refusal);
                }
                Some(Need::Queue { exchange, name, .. }) => {
                    self.unbound.remove(&exchange.name);
                    self.state.add_queue(&exchange.name, name);
                }
                Some(Need::Binding { exchange, name }) => {
                    if !is_refused {
                        self.unbound.remove(&exchange.name);
                    }
                    self.state
                        .settle_binding(&exchange.name, &name, !is_refused);
                }
            }
        }
    }

    /// Whether the broker answers what it is asked for now.
    fn answers(&mut self, need: &Need) -> bool {
        if self.is_recovering {
            self.stubborn.as_ref() != Some(need)
        } else {
            !self.chance.one_in(24)
        }
    }

    /// Whether nothing but what the broker has got can come of the request.
    fn is_unwritten(&self, number: u64) -> bool {
        !self.published.contains(&number) && !self.has_ended(number)
    }

    fn put_off(&mut self, need: &Need) {
        let mut requests = self.requests.iter();
        let waits = requests
            .find(|(number, request)| need.may_be_of(request) && self.is_unwritten(**number));
        if let Some((number, _)) = waits {
            self.unanswered.push((need.clone(), *number));
        }
    }

    /// Nothing waits that could be written, and what was not answered is asked for last.
    fn check_need(&mut self, need: Option<&Need>) {
        let is_full = |wire: &Wire| wire.is_full.load(Ordering::Relaxed);
        if self.wire.as_ref().is_some_and(is_full) {
            return; // one line, at the head of which something waits for the broker to take more
        }
        if self.state.sends_alone() {
            return;
        }
        let needs = self.state.needs();
        let has_needs = needs.iter().all(Option::is_some);
        assert!(has_needs, "something waits that could be written");
        let mut unanswered = std::mem::take(&mut self.unanswered);
        unanswered.retain(|(_, number)| self.is_unwritten(*number));
        self.unanswered = unanswered;
        let was_asked = |it: &Need| self.unanswered.iter().any(|(other, _)| it == other);
        if let Some(need) = need.filter(|need| was_asked(need)) {
            let mut needs = needs.iter().flatten();
            let is_last = needs.all(|other| self.state.is_put_off(other));
            assert!(is_last, "{need:?} was not answered, and comes first");
        }
    }

    /// One step towards a free channel.
    fn give_up_channel(&mut self) {
        if let Some(number) = self.state.remove_idle_route(None) {
            let channel = self.channels.remove(&number).unwrap();
            assert!(channel.unsettled.is_empty(), "it is not idle");
            let is_under_way = self.on_the_way.iter().any(|sent| sent.channel == number);
            assert!(!is_under_way, "it is not idle");
        }
    }

    /// Looks at what the client has just written.
    fn read(&mut self) {
        let Some(wire) = &self.wire else { return };
        let bytes = std::mem::take(&mut *wire.bytes.lock());
        let mut reader = Reader(&bytes);
        while !reader.0.is_empty() {
            let kind = reader.u8().unwrap();
            let channel = reader.u16().unwrap();
            let size = reader.u32().unwrap() as usize;
            assert!(size + 8 <= FRAME_MAX, "a frame of {size} bytes");
            let payload = reader.bytes(size).unwrap();
            assert_eq!(reader.u8(), Some(0xCE));
            let mut method = Reader(payload);
            if kind == 1 && (method.u16(), method.u16()) == (Some(60), Some(80)) {
                let tag = method.u64().unwrap();
                let consumer = self.consumer.as_mut();
                let consumer = consumer.filter(|consumer| consumer.channel == channel);
                let consumer = consumer.expect("replies are acknowledged where they came");
                let is_new = consumer.acknowledged < tag && tag <= consumer.delivered;
                assert!(is_new, "reply {tag} is acknowledged");
                consumer.acknowledged = tag;
            }
            if kind == 2 {
                let properties = Properties::read(payload).unwrap();
                let number = properties.message_id.parse().unwrap();
                self.check_published(number);
                self.on_the_way.push_back(Sent { channel, number });
            }
        }
    }

    fn check_published(&mut self, number: u64) {
        assert!(
            !self.settled.contains(&number),
            "{number} is sent again, though it is confirmed or answered"
        );
        let progress = self.requests[&number].progress.lock();
        assert!(!progress.is_left, "{number} is sent though it was given up");
        assert!(
            progress.end.is_none(),
            "{number} is sent though it has ended"
        );
        if self.published.insert(number) {
            let message = &self.requests[&number].message;
            let kind = (
                message.exchange.name.clone(),
                message.routing_key.clone(),
                message.msg_id.is_some(),
                message.default_queue.is_some(),
            );
            let before = self.last_first.insert(kind, number);
            assert!(before < Some(number), "{number} comes too late");
        }
    }

    /// Some of what is on its way arrives.
    fn arrive(&mut self) {
        for _ in 0..=self.chance.below(4) {
            let Some(sent) = self.on_the_way.pop_front() else {
                return;
            };
            // What arrives on a channel that the broker has closed is passed over.
            if let Some(channel) = self.channels.get_mut(&sent.channel) {
                channel.last_tag += 1;
                channel.unsettled.insert(channel.last_tag, sent.number);
            }
        }
    }

    fn any_channel(&mut self) -> Option<u16> {
        let mut busy: Vec<u16> = self
            .channels
            .iter()
            .filter(|(_, channel)| !channel.unsettled.is_empty())
            .map(|(number, _)| *number)
            .collect();
        busy.sort_unstable();
        (!busy.is_empty()).then(|| busy[self.chance.below(busy.len())])
    }

    /// A confirm, for one message or for many; or a refusal.
    fn settle(&mut self) {
        let Some(number) = self.any_channel() else {
            return;
        };
        let channel = self.channels.get_mut(&number).unwrap();
        let tags: Vec<u64> = channel.unsettled.keys().copied().collect();
        let tag = tags[self.chance.below(tags.len())];
        let is_multiple = self.chance.one_in(2);
        let is_taken = !self.chance.one_in(6);
        let exchange = channel.exchange.clone();
        let chosen: Vec<(u64, u64)> = channel
            .unsettled
            .iter()
            .filter(|(at, _)| **at == tag || (is_multiple && **at < tag))
            .map(|(at, message)| (*at, *message))
            .collect();
        for (at, _) in &chosen {
            channel.unsettled.remove(at);
        }
        let is_bound = !self.unbound.contains(&exchange);
        let mut confirmed = Vec::new();
        let mut returned = Vec::new();
        for (_, message) in chosen.iter().filter(|_| is_taken) {
            if is_bound {
                *self.taken.entry(*message).or_default() += 1;
                confirmed.push(*message);
            } else if self.requests[message].asks_for_return() {
                assert!(
                    self.state
                        .returned(number, &message.to_string(), 312, "NO_ROUTE")
                );
                returned.push(*message);
            } else {
                self.dropped.insert(*message);
                confirmed.push(*message);
            }
        }
        assert!(
            self.state
                .settle(number, tag, is_multiple, is_taken, self.now)
        );
        for message in confirmed {
            let is_told = self.requests[&message].progress.lock().is_taken;
            assert!(is_told, "{message} is confirmed");
            self.settled.insert(message);
        }
        for message in returned {
            // Dropped, as ever where no server listens, or kept for a moment in which one may come.
            if self.requests[&message].progress.lock().is_taken {
                self.dropped.insert(message);
                self.settled.insert(message);
            }
        }
    }

    /// A server answers a call that a queue has taken.
    fn reply(&mut self) {
        let calls: Vec<u64> = self
            .requests
            .iter()
            .filter(|(number, request)| {
                let progress = request.progress.lock();
                let is_open = !progress.is_answered && !progress.is_left && progress.end.is_none();
                request.is_call() && is_open && self.taken.contains_key(number)
            })
            .map(|(number, _)| *number)
            .collect();
        if calls.is_empty() || !self.state.has_replies() {
            return;
        }
        let number = calls[self.chance.below(calls.len())];
        let consumer = self.consumer.as_mut().unwrap();
        consumer.delivered += 1;
        let (channel, tag) = (consumer.channel, consumer.delivered);
        let size = self.chance.below(100_000);
        self.state.arrived(channel, tag, size, self.now);
        assert!(
            self.state
                .reply(&number.to_string(), b"{}".to_vec(), self.now)
        );
        self.settled.insert(number);
    }

    /// Some of what the broker has got is in queues, though the client will not learn it.
    fn take_unsaid(&mut self, channel: &Channel) {
        for number in channel.unsettled.values() {
            if !self.unbound.contains(&channel.exchange) && self.chance.one_in(2) {
                *self.taken.entry(*number).or_default() += 1;
            }
        }
    }

    fn lose_or_connect(&mut self) {
        if self.wire.is_none() {
            self.connect();
            return;
        }
        if self.chance.one_in(3) {
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.arrive();
        let mut channels: Vec<_> = self.channels.drain().collect();
        channels.sort_unstable_by_key(|(number, _)| *number);
        for (_, channel) in channels {
            self.take_unsaid(&channel);
        }
        self.on_the_way.clear();
        self.wire = None;
        self.consumer = None;
        let loss = [Loss::Forced, Loss::Unexplained, Loss::Refusal][self.chance.below(3)];
        let _ = self.state.disconnect("the connection is lost", loss);
    }

    fn connect(&mut self) {
        let wire = Wire::default();
        self.wire = Some(wire.clone());
        self.last_channel = 0;
        let is_again = std::mem::replace(&mut self.has_connected, true);
        self.state
            .connect(Box::new(wire), FRAME_MAX, is_again, self.now);
    }

    /// The broker closes a channel, over one of its messages or over a deleted exchange; or that of replies.
    fn close_channel(&mut self) {
        if self.chance.one_in(4) {
            self.consumer = None;
            self.state.set_replies(false);
            return;
        }
        let Some(number) = self.any_channel() else {
            return;
        };
        let channel = self.channels.remove(&number).unwrap();
        self.take_unsaid(&channel);
        let code = [NOT_FOUND, 403, 541][self.chance.below(3)];
        let refusal = Refusal {
            code,
            text: "closed".to_owned(),
            ..Refusal::default()
        };
        assert!(self.state.close_route(number, &refusal, self.now));
    }

    /// A caller goes, time passes, a queue comes or goes, the connection is full or not.
    fn change(&mut self) {
        match self.chance.below(4) {
            0 => {
                let numbers: Vec<u64> = self.requests.keys().copied().collect();
                if !numbers.is_empty() {
                    let number = numbers[self.chance.below(numbers.len())];
                    let request = &self.requests[&number];
                    // No thread waits for a reply.
                    request.progress.lock().is_left = request.outbox.is_none();
                    self.state.forget(&number.to_string());
                }
            }
            1 => self.now += Duration::from_millis(self.chance.below(20_000) as u64),
            2 => {
                let names = ["exchange0", "exchange1", "fanout", ""];
                let name = names[self.chance.below(names.len())].to_owned();
                if !self.unbound.remove(&name) {
                    self.unbound.insert(name);
                }
            }
            _ => {
                if let Some(wire) = &self.wire {
                    wire.is_full.store(self.chance.one_in(2), Ordering::Relaxed);
                }
            }
        }
    }

    /// From here on connections last, but for one thing that is not answered at first, and there are
    /// queues: every request comes to an end.
    fn recover(&mut self) {
        self.is_recovering = true;
        self.stubborn = self.any_need();
        self.unbound.clear();
        for round in 0.. {
            if round == ROUNDS {
                let stubborn = self.stubborn.take();
                for (number, request) in &self.requests {
                    let needs_it = |need: &Need| need.may_be_of(request);
                    let is_unwritten =
                        self.is_unwritten(*number) && !stubborn.as_ref().is_some_and(needs_it);
                    assert!(!is_unwritten, "{number} waits behind {stubborn:?}");
                }
            }
            if self.wire.is_none() {
                self.connect();
            }
            self.now += Duration::from_secs(1);
            if let Some(wire) = &self.wire {
                wire.is_full.store(false, Ordering::Relaxed);
            }
            loop {
                self.flush();
                self.read();
                while !self.on_the_way.is_empty() {
                    self.arrive();
                }
                while self.any_channel().is_some() {
                    self.settle();
                }
                // Suspects, each of which waits for those before.
                if !self.state.sends_alone() {
                    break;
                }
            }
            for _ in 0..self.requests.len() {
                self.reply();
            }
            let mut numbers = self.requests.keys();
            if numbers.all(|number| self.has_ended(*number)) {
                break;
            }
            assert!(round < 200, "some requests do not end");
        }
        assert_eq!(self.state.gauges().unconfirmed, 0, "nothing is unconfirmed");
        self.now += Duration::from_secs(1);
        self.flush();
        if let Some(consumer) = &self.consumer {
            assert_eq!(consumer.acknowledged, consumer.delivered, "of replies");
        }
        self.check_replies();
        for (number, request) in &self.requests {
            let progress = request.progress.lock();
            if progress.is_taken && !self.dropped.contains(number) {
                assert!(self.taken.contains_key(number), "{number} is lost");
            }
        }
    }

    fn any_need(&mut self) -> Option<Need> {
        let exchange = Exchange {
            name: ["exchange0", "exchange1", "fanout", ""][self.chance.below(4)].to_owned(),
            ..Exchange::default()
        };
        match self.chance.below(6) {
            0 => None,
            1 => Some(Need::Replies),
            2 | 3 => Some(Need::Route(exchange)),
            _ => Some(Need::Queue {
                exchange,
                name: "topic".to_owned(),
                arguments: Table::new(),
            }),
        }
    }

    /// No reply is waited for any more, and each that no queue has was told of once.
    fn check_replies(&self) {
        outbox::tell(&self.failures);
        let left = self.outbox.wait_confirmed(Instant::now());
        assert_eq!(left, (0, 0), "replies that are unconfirmed, and late ones");
        let replies = self.requests.iter().filter(|(_, it)| it.outbox.is_some());
        let failed = replies.filter(|(_, reply)| reply.progress.lock().end.is_some());
        let failed: Vec<u64> = failed.map(|(number, _)| *number).collect();
        let mut told = std::mem::take(&mut *self.told.lock());
        told.sort_unstable();
        assert_eq!(told, failed, "each failure is told once");
    }

    fn has_ended(&self, number: u64) -> bool {
        let request = &self.requests[&number];
        let progress = request.progress.lock();
        let is_done = progress.is_taken && !request.is_call();
        is_done
            || progress.is_left
            || progress.is_answered
            || progress.end.is_some()
            || self.dropped.contains(&number)
    }
}

#[test]
fn whatever_becomes_of_connections_nothing_is_lost_and_nothing_confirmed_is_sent_again() {
    each_schedule(|seed| World::new(seed).run());
}

/// Runs the schedule of each seed, or that of `OSLOXIDE_SIM_SEED` alone.
pub(super) fn each_schedule(run: impl Fn(u64)) {
    let only = std::env::var("OSLOXIDE_SIM_SEED").ok();
    let seeds = match only.and_then(|text| text.parse::<u64>().ok()) {
        Some(seed) => seed..seed + 1,
        None => 1..SCHEDULES + 1,
    };
    for seed in seeds {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(seed)));
        if let Err(panic) = outcome {
            eprintln!("OSLOXIDE_SIM_SEED={seed}");
            resume_unwind(panic);
        }
    }
}
