//! The wire format, as far as a question about addresses needs it (RFC 1035 4). Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest name on the wire, and longest label.
const NAME_MAX: usize = 255;
const LABEL_MAX: usize = 63;
/// Records of an answer that are looked at.
const RECORDS_MAX: usize = 128;
/// Names that an alias may lead over.
const ALIASES_MAX: usize = 16;

const CLASS_IN: u16 = 1;
const CNAME: u16 = 5;

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    V4,
    V6,
}

impl Kind {
    fn number(self) -> u16 {
        match self {
            Self::V4 => 1,
            Self::V6 => 28,
        }
    }
}

/// What a message answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// These addresses, for so many seconds; perhaps none.
    Addresses {
        addrs: BTreeSet<IpAddr>,
        ttl: u32,
    },
    NoSuchName,
    /// The server cannot or does not want to say.
    Failed,
    /// It did not fit; it is to be asked by TCP.
    Truncated,
    /// It is none to this question.
    Other,
}

/// A question; `None` where the name cannot be asked for.
pub(super) fn question(id: u16, name: &str, kind: Kind) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 18);
    out.extend(id.to_be_bytes());
    // One question, recursion desired.
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let start = out.len();
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        out.push(length);
        out.extend(label.as_bytes());
    }
    out.push(0);
    if out.len() - start > NAME_MAX {
        return None;
    }
    out.extend(kind.number().to_be_bytes());
    out.extend(CLASS_IN.to_be_bytes());
    Some(out)
}

/// What `message` answers to that question.
pub(super) fn reply(message: &[u8], question: &[u8]) -> Reply {
    read(message, question).unwrap_or(Reply::Other)
}

fn read(message: &[u8], question: &[u8]) -> Option<Reply> {
    let mut reader = Reader { message, at: 0 };
    let (id, flags) = (reader.u16()?, reader.u16()?);
    let (questions, answers) = (reader.u16()?, reader.u16()?);
    reader.skip(4)?;
    let asked = question.get(12..)?;
    let echoed = message.get(12..12 + asked.len())?;
    // Servers may answer in another case than they were asked.
    let is_ours = question.get(..2)? == id.to_be_bytes() && flags & 0x8000 != 0 && questions == 1;
    if !is_ours || !echoed.eq_ignore_ascii_case(asked) {
        return None;
    }
    if flags & 0x0200 != 0 {
        return Some(Reply::Truncated);
    }
    match flags & 0x000f {
        0 => {}
        3 => return Some(Reply::NoSuchName),
        _ => return Some(Reply::Failed),
    }
    let name = reader.name()?;
    let kind = reader.u16()?;
    reader.skip(2)?;
    let mut records = Vec::new();
    for _ in 0..usize::from(answers).min(RECORDS_MAX) {
        // A record that is cut off ends them.
        let Some(record) = reader.record() else { break };
        records.push(record);
    }
    Some(follow(&name, kind, &records))
}

/// Addresses of the name, or of what its aliases lead to.
fn follow(name: &[u8], kind: u16, records: &[Record]) -> Reply {
    let (mut name, mut ttl) = (name, u32::MAX);
    for _ in 0..ALIASES_MAX {
        let here = || records.iter().filter(|record| record.name == name);
        let mut addrs = BTreeSet::new();
        for record in here().filter(|record| record.kind == kind) {
            if let Data::Address(addr) = record.data {
                addrs.insert(addr);
                ttl = ttl.min(record.ttl);
            }
        }
        let alias = here().find_map(|record| match &record.data {
            Data::Alias(alias) => Some((alias, record.ttl)),
            Data::Address(_) | Data::Other => None,
        });
        match alias {
            Some((alias, seconds)) if addrs.is_empty() => {
                (name, ttl) = (alias, ttl.min(seconds));
            }
            _ => return Reply::Addresses { ttl: if addrs.is_empty() { 0 } else { ttl }, addrs },
        }
    }
    Reply::Failed
}

struct Record {
    /// Lower case, labels behind their lengths.
    name: Vec<u8>,
    kind: u16,
    ttl: u32,
    data: Data,
}

enum Data {
    Address(IpAddr),
    Alias(Vec<u8>),
    Other,
}

struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl<'m> Reader<'m> {
    fn take(&mut self, n: usize) -> Option<&'m [u8]> {
        let taken = self.message.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(taken)
    }

    fn skip(&mut self, n: usize) -> Option<()> {
        self.take(n).map(|_| ())
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    /// A name, its pointers followed. Each leads further back than the one before, so they end.
    fn name(&mut self) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        let mut reader = Reader { message: self.message, at: self.at };
        let (mut end, mut before) = (None, self.at);
        loop {
            let length = reader.u8()?;
            match length {
                0 => break,
                length if usize::from(length) <= LABEL_MAX => {
                    name.push(length);
                    name.extend(reader.take(length.into())?.iter().map(u8::to_ascii_lowercase));
                    if name.len() > NAME_MAX {
                        return None;
                    }
                }
                length if length & 0xc0 == 0xc0 => {
                    let low = reader.u8()?;
                    end.get_or_insert(reader.at);
                    let target = usize::from(length & 0x3f) << 8 | usize::from(low);
                    if target >= before {
                        return None;
                    }
                    (before, reader.at) = (target, target);
                }
                _ => return None,
            }
        }
        self.at = end.unwrap_or(reader.at);
        Some(name)
    }

    fn record(&mut self) -> Option<Record> {
        let name = self.name()?;
        let (kind, class) = (self.u16()?, self.u16()?);
        let ttl = u32::from_be_bytes(self.take(4)?.try_into().ok()?);
        let length = usize::from(self.u16()?);
        let start = self.at;
        let bytes = self.take(length)?;
        let data = match (kind, class) {
            (1, CLASS_IN) => Data::Address(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
            (28, CLASS_IN) => Data::Address(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
            (CNAME, CLASS_IN) => Data::Alias(Reader { message: self.message, at: start }.name()?),
            _ => Data::Other,
        };
        // The highest bit says that it has run out (RFC 2181 8).
        let ttl = if ttl > i32::MAX.unsigned_abs() { 0 } else { ttl };
        Some(Record { name, kind, ttl, data })
    }
}

/// For the fuzz target: any bytes as the answer to a question, the echo of which is written over them so that what
/// stands behind it is read, too.
pub fn fuzz(bytes: &[u8]) {
    let name = "a.example.com";
    for kind in [Kind::V4, Kind::V6] {
        let Some(question) = question(7, name, kind) else { continue };
        let mut message = bytes.to_vec();
        let _ = reply(&message, &question);
        if let (Some(head), Some(asked)) = (message.get_mut(..6), question.get(..2)) {
            head.iter_mut()
                .zip(asked.iter().chain(&[0x81, 0x80, 0, 1]))
                .for_each(|(byte, ours)| *byte = *ours);
        }
        if let (Some(echo), Some(asked)) = (message.get_mut(12..question.len()), question.get(12..)) {
            echo.copy_from_slice(asked);
        }
        if let Reply::Addresses { addrs, .. } = reply(&message, &question) {
            assert!(addrs.len() <= RECORDS_MAX);
            assert!(addrs.iter().all(|addr| addr.is_ipv4() == (kind == Kind::V4)), "asked for {kind:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer to `question` with these records behind it.
    fn answer(question: &[u8], flags: u16, records: &[&[u8]]) -> Vec<u8> {
        let mut out = question.to_vec();
        out.splice(2..4, flags.to_be_bytes());
        out.splice(6..8, u16::try_from(records.len()).unwrap().to_be_bytes());
        out.extend(records.concat());
        out
    }

    fn record(name: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(data.len()).unwrap();
        [name, &kind.to_be_bytes(), &[0, 1], &ttl.to_be_bytes(), &length.to_be_bytes(), data].concat()
    }

    const ASKED: &[u8] = &[0xc0, 12];

    fn found(addrs: &[&str], ttl: u32) -> Reply {
        Reply::Addresses { addrs: addrs.iter().map(|addr| addr.parse().unwrap()).collect(), ttl }
    }

    #[test]
    fn an_answer_is_read_as_far_as_it_is_about_the_question() {
        let question = question(7, "a.example.", Kind::V4).unwrap();
        let one = record(ASKED, 1, 30, &[192, 0, 2, 1]);
        let two = record(b"\x01A\x07Example\x00", 1, 20, &[192, 0, 2, 2]);
        let alias = record(ASKED, 5, 10, b"\x01b\xc0\x0e");
        let of_alias = record(b"\x01b\x07example\x00", 1, 90, &[192, 0, 2, 3]);
        let stranger = record(b"\x01c\x00", 1, 5, &[192, 0, 2, 9]);
        let circle = record(ASKED, 5, 10, ASKED);
        let v6 = record(ASKED, 28, 30, &[0; 16]);
        let cases: [(&str, u16, Vec<&[u8]>, Reply); 9] = [
            ("two, in any case", 0x8180, vec![&one, &two, &stranger], found(&["192.0.2.1", "192.0.2.2"], 20)),
            ("an alias", 0x8180, vec![&of_alias, &alias], found(&["192.0.2.3"], 10)),
            ("an alias without addresses", 0x8180, vec![&alias], found(&[], 0)),
            ("an alias to itself", 0x8180, vec![&circle], Reply::Failed),
            ("another kind", 0x8180, vec![&v6], found(&[], 0)),
            ("no such name", 0x8183, vec![], Reply::NoSuchName),
            ("refused", 0x8185, vec![], Reply::Failed),
            ("cut short", 0x8380, vec![&one], Reply::Truncated),
            ("no answer at all", 0x0180, vec![&one], Reply::Other),
        ];
        for (case, flags, records, expected) in cases {
            assert_eq!(reply(&answer(&question, flags, &records), &question), expected, "{case}");
        }
        let mut other_id = answer(&question, 0x8180, &[&one]);
        other_id[0] ^= 1;
        assert_eq!(reply(&other_id, &question), Reply::Other);
        let other_name = super::question(7, "b.example", Kind::V4).unwrap();
        assert_eq!(reply(&answer(&other_name, 0x8180, &[&one]), &question), Reply::Other);
    }

    #[test]
    fn names_that_do_not_fit_are_not_asked_for() {
        let long = "a".repeat(64);
        let many = "a.".repeat(130);
        for name in ["", "a..b", &long, &many] {
            assert_eq!(question(0, name, Kind::V6), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_server_sends_breaks_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let question = question(7, "a.example", Kind::V4).unwrap();
            let mut answer = answer(&question, 0x8180, &[]);
            answer[7] = 3;
            answer.extend(&bytes);

            prop_assert_eq!(reply(&bytes, &question), Reply::Other);
            if let Reply::Addresses { addrs, .. } = reply(&answer, &question) {
                prop_assert!(addrs.len() <= 3 && addrs.iter().all(IpAddr::is_ipv4), "{addrs:?}");
            }
        }
    }
}
