//! What programs outside of the crate believe of the shared memory.
//!
//! Owns the comparison of this room's layout with the probes that read it by themselves, in sh and in
//! Python: a field that moves fails here, and not where a service is called dead. A change of what they
//! read is a change of both, whatever [`VERSION`](super::VERSION) says: a probe may be newer or older
//! than the service.
#![cfg(target_endian = "little")]

use super::row::{SLOT_AT, STATE_AT};
use super::snapshot::State;
use super::{HEADER_BYTES, Header, MAGIC, NAME_BYTES};
use std::mem::offset_of;

const IN_SH: &str = include_str!("../../data/scripts/osloxide-ready");
const IN_PYTHON: &str = include_str!("../../python/osloxide/cli/ready.py");

/// The number that `od -tu4` gives the word there, among the arguments of a shell.
fn word(at: usize) -> usize {
    assert_eq!(at % 4, 0);
    at / 4 + 1
}

#[track_caller]
fn assert_says(program: &str, part: &str) {
    assert!(program.contains(part), "a probe has no `{part}`");
}

#[test]
fn the_probe_in_sh_reads_the_header_where_it_is() {
    let name_at = offset_of!(Header, name);
    let (low, high) = (MAGIC & u64::from(u32::MAX), MAGIC >> 32);
    assert_eq!(word(offset_of!(Header, magic)), 1);
    for part in [
        format!("-N{} \"$2\"", name_at + NAME_BYTES),
        format!("[ $# = {} ]", (name_at + NAME_BYTES) / 4),
        format!("[ \"$1 $2\" = \"{low} {high}\" ]"),
        format!("[ \"${}\" = \"$pid\" ]", word(offset_of!(Header, pid))),
        format!(
            "row_bytes=${} rows=${}\n",
            word(offset_of!(Header, row_bytes)),
            word(offset_of!(Header, used))
        ),
        format!("shift {}\n", name_at / 4),
        format!("[ ${{#1}} -le {NAME_BYTES} ]"),
    ] {
        assert_says(IN_SH, &part);
    }
}

#[test]
fn the_probe_in_sh_reads_rows_and_states_as_they_are() {
    let (state, slot) = (word(STATE_AT), word(SLOT_AT));
    let (free, replaced) = (State::Free as u32, State::Replaced as u32);
    let (runs, drains) = (State::Running as u32, State::Draining as u32);
    for part in [
        format!("-j{HEADER_BYTES} "),
        format!("case ${state} in\n        {free} | {replaced}) ;;"),
        format!("{runs} | {drains}) slots=\"$slots${slot} \" ready=\"$ready${slot} \" ;;"),
    ] {
        assert_says(IN_SH, &part);
    }
}

#[test]
fn the_probe_in_python_reads_what_is_there() {
    let name_at = offset_of!(Header, name);
    for part in [
        format!("_HEADER_BYTES = {HEADER_BYTES}\n"),
        format!("_NAME = slice({name_at}, {name_at} + {NAME_BYTES})"),
        format!(
            "_number(header, {}, 4), _number(header, {}, 4), _number(header, {}, 8),",
            offset_of!(Header, row_bytes),
            offset_of!(Header, pid),
            offset_of!(Header, started_at)
        ),
        format!("_number(header, {}, 4),\n", offset_of!(Header, used)),
        format!("_number(row, {STATE_AT}, 4)"),
        format!("_number(row, {SLOT_AT}, 4)"),
    ] {
        assert_says(IN_PYTHON, &part);
    }
    let names = [
        (State::Free, "free"),
        (State::Running, "running"),
        (State::Draining, "draining"),
        (State::Replaced, "replaced"),
    ];
    let list = IN_PYTHON.split("_STATES = (").nth(1).unwrap_or_default();
    let list: Vec<_> = list
        .split(')')
        .next()
        .unwrap_or_default()
        .split(", ")
        .collect();
    for (state, name) in names {
        assert_eq!(
            list.get(state as usize),
            Some(&format!("\"{name}\"").as_str())
        );
    }
}
