//! `penstock capture`: what is asked for, and packets as text or pcapng. Pure: the datapath brings
//! the packets, the agent carries the bytes to who asked.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::model::capture::{Filter, Packet, Tally};

pub mod decode;
pub mod pcapng;
pub mod text;

/// Bytes shown of each packet where nothing else is asked for: all headers.
const SNAP: u16 = 96;
/// Packets per second and CPU where nothing else is asked for: more than a person reads.
const RATE: u32 = 1000;

/// How packets are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One line each.
    Text,
    /// For Wireshark and its kin.
    Pcapng,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Which packets.
    pub filter: Filter,
    /// How they are written.
    pub format: Format,
    /// Ends after so many.
    pub count: Option<u64>,
    /// Ends after this long.
    pub time: Option<Duration>,
}

impl Question {
    /// Reads name and value pairs, named as the flags of `penstock capture`.
    pub fn parse(pairs: &[(String, String)]) -> Result<Self, String> {
        let mut question = Self {
            filter: Filter {
                verdicts: BTreeSet::new(),
                vip: None,
                host: None,
                every: 1,
                rate: RATE,
                snap: SNAP,
            },
            format: Format::Text,
            count: None,
            time: None,
        };
        let filter = &mut question.filter;
        for (name, value) in pairs {
            match name.as_str() {
                "verdict" => drop(filter.verdicts.insert(value.clone())),
                "vip" => filter.vip = Some(vip(value)?),
                "host" => filter.host = Some(value.parse().map_err(|_| wrong(name, value, "an IP address"))?),
                "sample" => filter.every = number(name, value, 1, u32::MAX)?,
                "rate" => filter.rate = number(name, value, 0, 10_000_000)?,
                "snaplen" => filter.snap = number(name, value, 14, 512)?,
                "count" => question.count = Some(number(name, value, 1, u64::MAX)?),
                "seconds" => question.time = Some(Duration::from_secs(number(name, value, 1, 86_400)?)),
                "format" => {
                    question.format = match value.as_str() {
                        "text" => Format::Text,
                        "pcapng" => Format::Pcapng,
                        _ => return Err(wrong(name, value, "text or pcapng")),
                    };
                }
                _ => return Err(format!("capture has no {name:?}")),
            }
        }
        Ok(question)
    }
}

fn vip(value: &str) -> Result<(IpAddr, u16), String> {
    if let Ok(addr) = value.parse::<IpAddr>() {
        return Ok((addr, 0));
    }
    let socket: SocketAddr =
        value.parse().map_err(|_| wrong("vip", value, "ADDR, ADDR:PORT or [ADDR]:PORT"))?;
    Ok((socket.ip(), socket.port()))
}

fn number<T>(name: &str, value: &str, least: T, most: T) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display + Copy,
{
    let given = value.parse::<T>().ok().filter(|given| (least..=most).contains(given));
    given.ok_or_else(|| wrong(name, value, &format!("{least} to {most}")))
}

fn wrong(name: &str, value: &str, allowed: &str) -> String {
    format!("--{name} {value:?}: allowed: {allowed}")
}

/// Writes packets in one of the formats.
#[derive(Debug)]
pub enum Writer {
    /// One line each.
    Text,
    /// Blocks.
    Pcapng(pcapng::Writer),
}

impl Writer {
    /// A writer, and what stands before the first packet.
    pub fn new(format: Format, snap: u16) -> (Self, Vec<u8>) {
        match format {
            Format::Text => (Self::Text, Vec::new()),
            Format::Pcapng => {
                let (writer, head) = pcapng::Writer::new(snap);
                (Self::Pcapng(writer), head)
            }
        }
    }

    /// Appends a packet.
    pub fn packet(&mut self, out: &mut Vec<u8>, packet: &Packet) {
        match self {
            Self::Text => {
                out.extend(text::line(packet).as_bytes());
                out.push(b'\n');
            }
            Self::Pcapng(writer) => writer.packet(out, packet),
        }
    }

    /// What stands after the last packet.
    pub fn end(&self, at: Duration, tally: Tally) -> Vec<u8> {
        match self {
            Self::Text => Vec::new(),
            Self::Pcapng(writer) => writer.end(at, tally),
        }
    }
}

/// How a capture went, in one line.
pub fn summary(shown: u64, tally: Tally) -> String {
    let Tally { matched, held_back, lost } = tally;
    format!("{shown} packets shown of {matched} that matched; {held_back} held back by the rate, {lost} lost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Question, String> {
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Question::parse(&pairs)
    }

    #[test]
    fn a_question_without_words_asks_for_all_as_text() {
        let question = parse(&[]).expect("valid");

        assert_eq!((question.format, question.count, question.time), (Format::Text, None, None));
        assert_eq!((question.filter.every, question.filter.rate, question.filter.snap), (1, RATE, SNAP));
        assert!(question.filter.verdicts.is_empty());
    }

    #[test]
    fn every_word_has_its_place() {
        let question = parse(&[
            ("verdict", "drop"),
            ("verdict", "forwarded-*"),
            ("vip", "[2001:db8::1]:443"),
            ("host", "198.51.100.7"),
            ("sample", "10"),
            ("rate", "0"),
            ("snaplen", "512"),
            ("count", "3"),
            ("seconds", "60"),
            ("format", "pcapng"),
        ]);

        let filter = Filter {
            verdicts: ["drop".to_owned(), "forwarded-*".to_owned()].into(),
            vip: Some(("2001:db8::1".parse().expect("address"), 443)),
            host: Some("198.51.100.7".parse().expect("address")),
            every: 10,
            rate: 0,
            snap: 512,
        };
        let time = Some(Duration::from_secs(60));
        assert_eq!(question, Ok(Question { filter, format: Format::Pcapng, count: Some(3), time }));
        assert_eq!(parse(&[("vip", "203.0.113.1")]).expect("valid").filter.vip.map(|vip| vip.1), Some(0));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        for (name, value, says) in [
            ("vip", "example.com", "--vip \"example.com\": allowed: ADDR, ADDR:PORT or [ADDR]:PORT"),
            ("host", "1", "--host \"1\": allowed: an IP address"),
            ("sample", "0", "--sample \"0\": allowed: 1 to 4294967295"),
            ("snaplen", "513", "--snaplen \"513\": allowed: 14 to 512"),
            ("format", "xml", "--format \"xml\": allowed: text or pcapng"),
            ("colour", "red", "capture has no \"colour\""),
        ] {
            assert_eq!(parse(&[(name, value)]), Err(says.to_owned()));
        }
    }
}
