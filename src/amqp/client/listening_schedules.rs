//! What a listener consumes under schedules by chance: channels that are closed and connections that are
//! lost between a delivery, its acknowledgement and its run, pools that refuse and cancel, and a stop
//! at any moment.
//!
//! Owns the simulated broker, pool and polling thread, and the promises of docs/simulation.md that
//! concern listeners. Everything that happens is drawn from a seed; a failure names it, and
//! `OSLOXIDE_SIM_SEED=N cargo test --no-default-features --features amqp listening_schedules` repeats it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::locks::Mutex;

use super::delivery::{Delivery, PickUp};
use super::envelope;
use super::listening::{Arrival, Listening, Queue, Stage};
use super::listening_tests::REQUEST;
use super::methods::{Properties, Refusal};
use super::schedules::{Chance, each_schedule};
use super::state::Outlet;
use crate::amqp::frames::Reader;

const STEPS: usize = 80;
const PREFETCH: usize = 4;
const STREAM: u16 = 2;

/// The listener's end of one opening of a channel.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Vec<u8>>>);

impl Outlet for Wire {
    fn queue(&self, frames: Vec<u8>) {
        self.0.lock().extend(frames);
    }

    fn unsent(&self) -> u64 {
        0
    }
}

/// An opening of a channel, as the broker sees it.
struct Channel {
    number: u16,
    wire: Wire,
    last_tag: u64,
    /// By tag; streams keep nothing.
    unsettled: BTreeMap<u64, Option<u64>>,
}

type Taken = Arc<Mutex<Vec<(u64, Delivery)>>>;

struct World {
    chance: Chance,
    listening: Arc<Listening>,
    channel: Option<Channel>,
    openings: u16,
    requests: u64,
    /// What waits in the queue.
    ready: VecDeque<u64>,
    /// What a pool thread has not begun.
    taken: Taken,
    pool_refuses: Arc<AtomicBool>,
    ran: BTreeMap<u64, u32>,
    lost: HashSet<u64>,
    lost_unnamed: usize,
    /// Acknowledged before they ran, or of a stream.
    last: HashSet<u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let queue = |is_stream| Queue {
            is_stream,
            ..Queue::default()
        };
        let last_look = Arc::new(Mutex::new(Instant::now()));
        let listening = Arc::new(Listening::new(
            vec![queue(false), queue(true)],
            0,
            last_look,
        ));
        let taken = Taken::default();
        let pool_refuses = Arc::new(AtomicBool::new(false));
        let (queued, refuses) = (Arc::clone(&taken), Arc::clone(&pool_refuses));
        listening.deliver_to(Arc::new(move |delivery, head| {
            if refuses.load(Ordering::Relaxed) {
                return Some(delivery);
            }
            queued.lock().push((number_of(head.unique_id), delivery));
            None
        }));
        Self {
            chance: Chance::of(seed),
            listening,
            channel: None,
            openings: 0,
            requests: 0,
            ready: VecDeque::new(),
            taken,
            pool_refuses,
            ran: BTreeMap::new(),
            lost: HashSet::new(),
            lost_unnamed: 0,
            last: HashSet::new(),
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            match self.chance.below(14) {
                0..=2 => self.deliver(),
                3 | 4 => self.begin(),
                5 => {
                    self.poll();
                }
                6 => self.acknowledge_old(),
                7 | 8 => self.read(),
                9 => self.cut(),
                10 => self.open(),
                11 => self.cancel(),
                _ => self.change(),
            }
        }
        if self.chance.one_in(2) {
            self.stop();
        }
        self.finish();
    }

    fn open(&mut self) {
        if self.channel.is_some() {
            return;
        }
        self.openings += 1;
        let wire = Wire::default();
        self.listening.open(self.openings, Box::new(wire.clone()));
        self.channel = Some(Channel {
            number: self.openings,
            wire,
            last_tag: 0,
            unsettled: BTreeMap::new(),
        });
    }

    /// Perhaps one more request for the queue; a message of the stream, or the first that waits.
    fn deliver(&mut self) {
        if self.chance.one_in(2) {
            self.requests += 1;
            self.ready.push_back(self.requests);
        }
        if self.channel.is_some() && self.chance.one_in(5) {
            self.requests += 1;
            self.last.insert(self.requests);
            self.hand_over(self.requests, true);
        } else {
            self.deliver_first();
        }
    }

    fn deliver_first(&mut self) {
        let kept = |it: &Channel| it.unsettled.values().flatten().count();
        if self.channel.as_ref().is_some_and(|it| kept(it) < PREFETCH)
            && let Some(number) = self.ready.pop_front()
        {
            self.hand_over(number, false);
        }
    }

    fn hand_over(&mut self, number: u64, is_stream: bool) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        channel.last_tag += 1;
        let tag = channel.last_tag;
        let kept = (!is_stream).then_some(number);
        channel.unsettled.insert(tag, kept);
        let body = REQUEST.replace("ID", &number.to_string());
        let properties = Properties {
            content_type: "application/json".to_owned(),
            content_encoding: "utf-8".to_owned(),
            ..Properties::default()
        };
        let consumer = if is_stream { STREAM } else { 1 };
        let body = body.into_bytes();
        assert!(self.listening.deliver(consumer, tag, properties, body));
    }

    /// A pool thread begins one, not always the first.
    fn begin(&mut self) {
        let mut taken = self.taken.lock();
        if taken.is_empty() {
            return;
        }
        let at = self.chance.below(taken.len());
        let (number, delivery) = taken.remove(at);
        drop(taken);
        if delivery.pick_up(Some(&number.to_string())) == PickUp::Run {
            let times = self.ran.entry(number).or_default();
            *times += 1;
            assert_eq!(*times, 1, "{number} runs twice");
        }
    }

    /// What the polling thread gets goes to the pool; false when it gets nothing.
    fn poll(&self) -> bool {
        let _ = self.listening.take_closures();
        let Arrival::Message(delivery) = self.listening.next(Some(Instant::now())) else {
            return false;
        };
        let head = envelope::head(delivery.message.as_deref().unwrap()).unwrap();
        let number = number_of(head.unique_id);
        self.taken.lock().push((number, delivery));
        true
    }

    fn acknowledge_old(&mut self) {
        let before = self.unsaid_acks();
        let (waits, _) = self.listening.acknowledge_old(Duration::ZERO, usize::MAX);
        let after = self.unsaid_acks();
        assert_eq!(after.len() - before.len(), waits.len());
        self.last.extend(&after[before.len()..]);
    }

    /// Requests whose acknowledgements the broker has not read.
    fn unsaid_acks(&self) -> Vec<u64> {
        let Some(channel) = &self.channel else {
            return Vec::new();
        };
        let said = settled(&channel.wire.0.lock());
        let found = said.iter().map(|said| channel.unsettled.get(&said.tag));
        found
            .map(|found| found.copied().flatten().unwrap_or(0))
            .collect()
    }

    /// The broker reads what was written.
    fn read(&mut self) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        let bytes = std::mem::take(&mut *channel.wire.0.lock());
        for said in settled(&bytes) {
            assert_eq!(said.channel, channel.number, "of another opening");
            let found = channel.unsettled.remove(&said.tag);
            let number = found.unwrap_or_else(|| panic!("tag {} is not known", said.tag));
            if let (true, Some(number)) = (said.returns, number) {
                self.ready.push_front(number);
            }
        }
    }

    /// The channel is closed, or the connection lost with all that is on its way.
    fn cut(&mut self) {
        let is_closed = self.chance.one_in(2);
        if is_closed {
            self.read();
        }
        let Some(channel) = self.channel.take() else {
            return;
        };
        let refusal = Refusal {
            code: 406,
            text: "PRECONDITION_FAILED".to_owned(),
            ..Refusal::default()
        };
        self.listening.end_epoch(is_closed.then_some(&refusal));
        for number in channel.unsettled.into_values().flatten() {
            self.ready.push_front(number);
        }
    }

    /// A job is cancelled before a thread has begun it.
    fn cancel(&mut self) {
        let Some((number, delivery)) = self.taken.lock().pop() else {
            return;
        };
        if !delivery.give_back() {
            self.lose(number);
        }
    }

    fn lose(&mut self, number: u64) {
        assert!(self.last.contains(&number), "{number} need not be lost");
        self.lost.insert(number);
    }

    fn change(&mut self) {
        let refuses = self.chance.one_in(3);
        self.pool_refuses.store(refuses, Ordering::Relaxed);
    }

    /// The listener stops, whether the broker answers in time or not, and what it has is run.
    fn stop(&mut self) {
        self.listening.want(Stage::Stopped);
        if self.chance.one_in(2) {
            self.listening.mute();
            for _ in 0..self.chance.below(6) {
                match self.chance.below(4) {
                    0 => self.deliver(),
                    1 => self.begin(),
                    2 => self.read(),
                    _ => {
                        self.poll();
                    }
                }
            }
        }
        self.lost_unnamed += self.listening.advance(Stage::Stopped);
        let begun: HashSet<u64> = self.ran.keys().copied().collect();
        if self.chance.one_in(2) {
            while self.poll() {}
        }
        while !self.taken.lock().is_empty() {
            self.begin();
        }
        let since = self.ran.keys().filter(|number| !begun.contains(number));
        for number in since {
            assert!(self.last.contains(number), "{number} begins after the stop");
        }
        self.read();
        self.lost_unnamed += self.listening.advance(Stage::Closed);
        self.cut();
    }

    /// Every request has run, waits in its queue, or is known to be lost.
    fn finish(&mut self) {
        self.pool_refuses.store(false, Ordering::Relaxed);
        let has_stopped = self.listening.is_over();
        for round in 0.. {
            assert!(round < 1000, "some requests do not end");
            if has_stopped {
                break;
            }
            self.open();
            while self.poll() {}
            while !self.taken.lock().is_empty() {
                self.begin();
            }
            self.read();
            let channel = self.channel.as_ref().unwrap();
            if self.ready.is_empty() && channel.unsettled.is_empty() {
                break;
            }
            self.deliver_first();
        }
        let gone = (1..=self.requests).filter(|number| {
            !self.ran.contains_key(number)
                && !self.ready.contains(number)
                && !self.lost.contains(number)
        });
        let gone: Vec<u64> = gone.collect();
        assert!(gone.len() <= self.lost_unnamed, "{gone:?} are gone");
        assert!(gone.iter().all(|number| self.last.contains(number)));
    }
}

fn number_of(unique_id: Option<String>) -> u64 {
    unique_id.unwrap().parse().unwrap()
}

/// What a listener has said of one delivery.
struct Said {
    channel: u16,
    tag: u64,
    /// It goes back to its queue.
    returns: bool,
}

fn settled(bytes: &[u8]) -> Vec<Said> {
    let mut said = Vec::new();
    let mut reader = Reader(bytes);
    while !reader.0.is_empty() {
        let kind = reader.u8().unwrap();
        let channel = reader.u16().unwrap();
        let size = reader.u32().unwrap() as usize;
        let mut method = Reader(reader.bytes(size).unwrap());
        assert_eq!((kind, reader.u8()), (1, Some(0xCE)));
        let (class, number) = (method.u16().unwrap(), method.u16().unwrap());
        let tag = u64::from_be_bytes(method.bytes(8).unwrap().try_into().unwrap());
        assert_eq!(class, 60);
        let returns = number == 120;
        assert!(returns || number == 80, "neither basic.ack nor basic.nack");
        said.push(Said {
            channel,
            tag,
            returns,
        });
    }
    said
}

#[test]
fn whatever_becomes_of_channels_and_pools_each_request_runs_once_waits_or_is_known_to_be_lost() {
    each_schedule(|seed| World::new(seed).run());
}
