//! Runs the program over one frame and tells what it did.

use penstock::datapath::engine::Engine;

/// What the program does with a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Does {
    Pass,
    Drop,
    Send(Vec<u8>),
}
pub use Does::{Drop, Pass, Send};

pub fn run(engine: &mut Engine, frame: &[u8]) -> Does {
    let run = engine.kernel.test_run("penstock", frame, 1).expect("the program runs");
    match run.action {
        1 => Drop,
        2 => {
            assert_eq!(run.packet, frame, "a passed frame is untouched");
            Pass
        }
        3 | 4 => Send(run.packet),
        other => panic!("unexpected XDP action {other}"),
    }
}

/// How often a verdict was counted.
pub fn count(engine: &Engine, name: &str) -> u64 {
    engine.verdicts().into_iter().find(|(verdict, _)| verdict.as_str() == name).map_or(0, |(_, count)| count)
}

/// How often an event was counted.
pub fn event(engine: &Engine, name: &str) -> u64 {
    engine.events().into_iter().find(|(event, _)| event.as_str() == name).map_or(0, |(_, count)| count)
}
