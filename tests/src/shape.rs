//! Reshapes a plain frame: tags, IPv4 options, IPv6 extension headers, fragments. Lengths and checksums of IP
//! headers stay right; the transport stays as it is.

use lb_common::csum;

const L3: usize = 14;

/// The frame with VLAN tags in front of its EtherType, the outermost first; two are 802.1ad.
pub fn tagged(frame: &[u8], vlans: &[u16]) -> Vec<u8> {
    let mut tags = Vec::new();
    for (number, vlan) in vlans.iter().enumerate() {
        let outer = number + 1 < vlans.len();
        tags.extend(if outer { [0x88, 0xa8] } else { [0x81, 0x00] });
        tags.extend(vlan.to_be_bytes());
    }
    [&frame[..12], &tags, &frame[12..]].concat()
}

/// An IPv4 frame with options, a multiple of four bytes.
pub fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let mut frame = [&frame[..L3 + 20], options, &frame[L3 + 20..]].concat();
    frame[L3] += options.len() as u8 / 4;
    let length = u16::from_be_bytes([frame[16], frame[17]]) + options.len() as u16;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    sum_v4(&mut frame);
    frame
}

/// An IPv6 frame with extension headers of these kinds; each body is the header without its first byte.
pub fn with_extensions(frame: &[u8], extensions: &[(u8, &[u8])]) -> Vec<u8> {
    let mut chain = Vec::new();
    for (number, (_, body)) in extensions.iter().enumerate() {
        chain.push(extensions.get(number + 1).map_or(frame[20], |next| next.0));
        chain.extend(*body);
    }
    let mut out = [&frame[..54], &chain, &frame[54..]].concat();
    out[20] = extensions.first().map_or(frame[20], |first| first.0);
    let length = u16::from_be_bytes([out[18], out[19]]) + chain.len() as u16;
    out[18..20].copy_from_slice(&length.to_be_bytes());
    out
}

/// The frame in fragments of at most `size` bytes of payload, a multiple of eight.
pub fn fragments(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let v6 = frame[12] == 0x86;
    let payload = if v6 { 54 } else { 34 };
    let pieces: Vec<&[u8]> = frame[payload..].chunks(size).collect();
    let mut out = Vec::new();
    for (number, piece) in pieces.iter().enumerate() {
        let more = u16::from(number + 1 < pieces.len());
        let mut head = frame[..payload].to_vec();
        if v6 {
            let offset = (number * size) as u16 | more;
            head.extend([head[20], 0]);
            head.extend(offset.to_be_bytes());
            head.extend([0, 0, 0x12, 0x34]);
            head[20] = 44;
            head[18..20].copy_from_slice(&(piece.len() as u16 + 8).to_be_bytes());
            out.push([head, piece.to_vec()].concat());
            continue;
        }
        let offset = (number * size / 8) as u16 | more << 13;
        head[20..22].copy_from_slice(&offset.to_be_bytes());
        head[16..18].copy_from_slice(&(piece.len() as u16 + 20).to_be_bytes());
        sum_v4(&mut head);
        out.push([head, piece.to_vec()].concat());
    }
    out
}

/// Makes the checksum of the IPv4 header right.
pub fn sum_v4(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let end = L3 + usize::from(frame[L3] & 15) * 4;
    let sum = csum::full(0, &frame[L3..end]).to_le_bytes();
    frame[24..26].copy_from_slice(&sum);
}
