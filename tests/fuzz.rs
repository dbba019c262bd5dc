//! Fuzzing for a fixed budget, on the stable compiler: the corpus, then what mutation makes of it.
//!
//! Owns the mutations and how a failure is kept; the properties are `osloxide::fuzzing`'s. Everyday
//! runs are always the same, so that they cannot fail by chance. A search for something new:
//! `OSLOXIDE_FUZZ_SECONDS=600 cargo test --release --no-default-features --features fuzzing --test
//! fuzz`, ten minutes for each target, with inputs of its own each time. What it finds belongs into
//! fuzz/corpus, under a name that says what it is.
//!
//! No coverage guides it; that needs a nightly compiler (`make fuzz`, fuzz/README.md). The corpus
//! therefore holds one example of everything that is treated differently, and mutation keeps to small
//! steps around them.
#![cfg(feature = "fuzzing")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a failed step fails the test, and says for which input"
)]

use osloxide::fuzzing::TARGETS;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Inputs for each target in an everyday run.
const INPUTS: usize = 20_000;
/// The longest input that is made.
const LONGEST: usize = 2_048;

/// Bytes that mean something to one target or another.
const WORDS: [&[u8]; 44] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"%",
    b"%2",
    b"%00",
    b"\"",
    b"\\",
    b"\x7f",
    b"\xff",
    b"_",
    b"-",
    b"+",
    b"*",
    b"//",
    b"?",
    b"@",
    b"0",
    b"-1",
    b"+1",
    b"0x1",
    b"ffffffffffffffff",
    b"18446744073709551616",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"Host: a\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Upgrade: x\r\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"1\r\na\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"Content-Length",
    b"!ALL",
    b"@STRENGTH",
    b"AESGCM",
];

/// xorshift64*: fast, and the same everywhere.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

/// One to four small changes to one of the inputs.
fn mutated(corpus: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut input = corpus[chance.below(corpus.len())].clone();
    for _ in 0..=chance.below(4) {
        let at = chance.below(input.len() + 1);
        let end = at + chance.below((input.len() - at).min(16) + 1);
        match chance.below(7) {
            0 if at < input.len() => input[at] ^= 1 << chance.below(8),
            1 => drop(input.drain(at..end)),
            2 => {
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            3 => {
                let word = WORDS[chance.below(WORDS.len())];
                input.splice(at..end, word.iter().copied());
            }
            4 => {
                let word = WORDS[chance.below(WORDS.len())];
                input.splice(at..at, word.iter().copied());
            }
            5 => {
                let other = &corpus[chance.below(corpus.len())];
                let from = chance.below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            _ => input.insert(at, u8::try_from(chance.below(256)).unwrap()),
        }
    }
    input.truncate(LONGEST);
    input
}

/// Calls the target; an input that it does not take is kept.
fn check(name: &str, target: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
        std::fs::write(&file, input).unwrap();
        eprintln!(
            "{name} fails for {:?}\nkept in {}",
            input.escape_ascii().to_string(),
            file.display()
        );
        resume_unwind(panic);
    }
}

fn fuzz(name: &str) {
    let (_, target) = TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("no target is called {name}"));
    let corpus = corpus(name);
    for input in &corpus {
        check(name, *target, input);
    }
    let seconds: Option<u64> = std::env::var("OSLOXIDE_FUZZ_SECONDS")
        .ok()
        .map(|text| text.parse().unwrap());
    let seed = seconds.map_or(1, |_| RandomState::new().hash_one(name) | 1);
    let mut chance = Chance(seed);
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(3600));
    let mut count: usize = 0;
    while (seconds.is_some() || count < INPUTS) && Instant::now() < until {
        check(name, *target, &mutated(&corpus, &mut chance));
        count += 1;
    }
    if seconds.is_some() {
        println!("{name}: {count} inputs, seed {seed}");
    }
}

#[test]
fn any_file_of_certificates_serves_or_is_refused_by_its_option() {
    fuzz("certificates");
}

#[test]
fn any_cipher_list_is_refused_or_honoured() {
    fuzz("ciphers");
}

#[test]
fn any_request_head_gives_a_true_environ() {
    fuzz("environ");
}

#[test]
fn any_stream_means_the_same_to_the_observer_and_to_hyper() {
    fuzz("framing");
}

#[test]
fn any_word_of_a_broker_is_read_alike_wherever_it_is_cut() {
    fuzz("frames");
}

#[test]
fn any_answer_is_sent_whole_whatever_the_wire_takes() {
    fuzz("link");
}

#[test]
fn any_request_makes_one_unforged_line_of_the_log() {
    fuzz("log");
}

#[test]
fn any_stream_of_a_broker_means_the_same_to_a_client_wherever_it_is_cut() {
    fuzz("client");
}

#[test]
fn any_packet_of_a_proxy_is_read_alike_wherever_it_is_cut() {
    fuzz("packet");
}

#[test]
fn any_header_of_a_proxy_is_found_or_refused_wherever_it_is_cut() {
    fuzz("proxy");
}

#[test]
fn any_answer_is_refused_or_kept_to_its_word() {
    fuzz("response");
}

#[test]
fn every_target_has_a_test_and_a_door_for_libfuzzer() {
    let tests = include_str!("fuzz.rs");
    let doors = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    for (name, _) in TARGETS {
        assert!(tests.contains(&format!("fuzz(\"{name}\");")), "{name}");
        assert!(doors.join(format!("{name}.rs")).exists(), "{name}");
    }
}
