//! libFuzzer's door to the target `packet` of src/fuzzing.rs, which has its properties.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| osloxide::fuzzing::run("packet", input));
