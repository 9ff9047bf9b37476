//! Numbers, addresses and times as text, without the detour of the formatting machinery: every request
//! writes a dozen of them.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

/// Decimal, without leading zeros.
pub(super) fn number(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Two digits.
pub(super) fn hex(byte: u8) -> [u8; 2] {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    // A nibble is within.
    [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]
}

/// Lower-case hexadecimal digits of a number, the last ones, as many as there is room for.
pub(super) fn lower_hex(number: u128, out: &mut [u8]) {
    let mut rest = number;
    for digit in out.iter_mut().rev() {
        let nibble = (rest & 15) as u8;
        *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        rest >>= 4;
    }
}

/// As `Display` writes it.
pub(super) fn addr(addr: IpAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(addr_text(addr, &mut [0; 48]));
}

/// The same in a little room on the stack.
pub(super) fn addr_text(addr: IpAddr, room: &mut [u8; 48]) -> &[u8] {
    let mut at = 0;
    match addr {
        IpAddr::V4(v4) => {
            for octet in v4.octets() {
                let (text, len) = OCTETS[usize::from(octet)];
                if let Some(room) = room.get_mut(at..at + text.len()) {
                    room.copy_from_slice(&text);
                }
                at += usize::from(len);
            }
            // The last point.
            at -= 1;
        }
        IpAddr::V6(v6) => {
            let mut rest = &mut room[..];
            // It has 39 characters at most, or 45 with the last part as IPv4.
            let _ = write!(rest, "{v6}");
            at = 48 - rest.len();
        }
    }
    room.get(..at).unwrap_or_default()
}

/// Every octet with a point behind it, and the bytes of both.
static OCTETS: [([u8; 4], u8); 256] = {
    let mut table = [([b'.'; 4], 0); 256];
    let mut octet = 0;
    while octet < table.len() {
        let digits = [(octet / 100) as u8, (octet / 10 % 10) as u8, (octet % 10) as u8];
        let first = if octet >= 100 { 0 } else { 2 - (octet >= 10) as usize };
        let mut at = first;
        while at < digits.len() {
            table[octet].0[at - first] = b'0' + digits[at];
            at += 1;
        }
        table[octet].1 = (4 - first) as u8;
        octet += 1;
    }
    table
};

/// Seconds with three digits of milliseconds behind the point.
pub(super) fn seconds(duration: Duration, out: &mut Vec<u8>) {
    number(duration.as_secs(), out);
    let millis = duration.subsec_millis();
    out.push(b'.');
    for unit in [100, 10, 1] {
        out.push(b'0' + (millis / unit % 10) as u8);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"-".to_vec();
        write(&mut out);
        String::from_utf8(out).expect("ascii")
    }

    proptest! {
        #[test]
        fn all_is_written_as_display_does(n: u64, address: IpAddr, nanos in 0_u64..1 << 50) {
            let time = Duration::from_nanos(nanos);
            prop_assert_eq!(written(|out| number(n, out)), format!("-{n}"));
            prop_assert_eq!(written(|out| addr(address, out)), format!("-{address}"));
            let shown = format!("-{}.{:03}", time.as_secs(), time.subsec_millis());
            prop_assert_eq!(written(|out| seconds(time, out)), shown);
        }
    }
}
