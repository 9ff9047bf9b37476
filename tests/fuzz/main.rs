//! Fuzzing of what strangers send: every parser takes a corpus and mutations of it. A target panics
//! where it breaks its own rules (`penstock::l7::fuzz`); the seed and the bytes are printed.
//!
//! `cargo xtask fuzz` searches for longer, guided by what code an input reaches. What breaks a target goes into
//! `fuzz/corpus/<target>/`, and is replayed from then on.

mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use targets::{Target, targets};

/// How long each target is fed with mutations.
const EACH: Duration = Duration::from_secs(1);

/// Pieces that mean something to one of the parsers.
const WORDS: [&[u8]; 30] = [
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"/",
    b"..",
    b"%2f",
    b"%00",
    b"#",
    b"?",
    b"@",
    b"http://",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"Content-Length: 4\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close, content-length\r\n",
    b"Host: b\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"PROXY TCP6 ::1 ::1 1 1\r\n",
    b"\x16\x03\x01\x00\x05\x01\x00\x00\x01",
    b"\x21\x11\x00\x0c",
    b"\xff\xff\xff\xff",
];

/// xorshift64: enough to vary inputs, and a seed repeats them.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap_or(0)
    }

    fn one_of<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

#[test]
fn every_input_of_the_corpus_is_survived() {
    for target in targets() {
        let corpus = corpus(target.name);
        assert!(!corpus.is_empty(), "{} has a corpus", target.name);
        for (path, bytes) in corpus {
            assert!(survives(&target, &bytes), "{}", path.display());
        }
    }
}

#[test]
fn mutations_of_the_corpus_are_survived() {
    for target in targets() {
        let corpus: Vec<Vec<u8>> = corpus(target.name).into_iter().map(|(_, bytes)| bytes).collect();
        let inputs: Vec<&[u8]> = corpus.iter().map(Vec::as_slice).collect();
        let end = Instant::now() + EACH;
        let mut runs: u64 = 0;
        // A run has its own seed, so that what fails can be repeated alone.
        while Instant::now() < end {
            runs += 1;
            let bytes = mutated(&inputs, runs);
            assert!(
                survives(&target, &bytes),
                "{} seed {runs}: {:?}",
                target.name,
                bytes.escape_ascii().to_string()
            );
        }
        println!("{}: {runs} runs", target.name);
    }
}

fn survives(target: &Target, bytes: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).is_ok()
}

/// An input with one to eight changes.
fn mutated(inputs: &[&[u8]], seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut bytes = random.one_of(inputs).to_vec();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below(bytes.len() + 1 - at).min(16);
        match random.below(8) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.below(256) as u8;
                }
            }
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            4 | 5 => drop(bytes.splice(at..at, random.one_of(&WORDS).iter().copied())),
            6 => {
                let other = random.one_of(inputs);
                let from = random.below(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = lb_tests::workspace().join("tests/fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(&path).expect("readable"))).collect()
}
