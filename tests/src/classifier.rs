//! A tc program of somebody else's, on the way out of an interface: it says one thing of every packet.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};

/// What it is called.
pub const NAME: &str = "somebody_elses";
/// The packet leaves, and no program behind is asked (`TC_ACT_OK`).
pub const PASS: i32 = 0;

/// One by a link, where the kernel has tcx, until this is dropped.
pub struct Linked {
    _link: SchedClassifierLink,
    _program: Ebpf,
}

impl Linked {
    /// Puts it on the way out of an interface of this thread's namespace.
    pub fn on(device: &str, action: i32, order: LinkOrder) -> Result<Self> {
        let mut program = Ebpf::load(&object(action)).context("load the object")?;
        let link = attach(&mut program, device, TcAttachOptions::TcxOrder(order))?;
        Ok(Self { _link: link, _program: program })
    }
}

/// Puts one there as a filter, which ends with the interface.
pub fn filter(device: &str, action: i32, priority: u16, handle: u16) -> Result<()> {
    // There may be one.
    let _ = tc::qdisc_add_clsact(device);
    let options = NlOptions { priority, handle: TcHandle::new(0, handle), classid: None };
    let mut program = Ebpf::load(&object(action)).context("load the object")?;
    let link = attach(&mut program, device, TcAttachOptions::Netlink(options))?;
    // Its end would be looked for in the namespace of whoever drops it.
    std::mem::forget(link);
    Ok(())
}

fn attach(program: &mut Ebpf, device: &str, options: TcAttachOptions) -> Result<SchedClassifierLink> {
    let program: &mut SchedClassifier = program.program_mut(NAME).context("no program")?.try_into()?;
    program.load()?;
    let id = program.attach_with_options(device, TcAttachType::Egress, options)?;
    Ok(program.take_link(id)?)
}

/// Name; kind and flags; section that is linked to and number of local symbols; size of an entry; bytes.
type Section<'a> = (&'a str, [u32; 2], [u32; 2], usize, &'a [u8]);

/// An ELF object with the program (elf(5)): 64 bits, little-endian, relocatable, for the machine BPF. Sections behind the
/// head, in order: none, the names, the symbols, the program, its license.
fn object(action: i32) -> Vec<u8> {
    const HEAD: usize = 64;
    const SYMBOL: usize = 24;
    let words = ["", NAME, "classifier", "license", ".symtab", ".strtab"];
    let names: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
    let name = |word: &str| -> u32 {
        let before = words.iter().take_while(|other| **other != word);
        before.map(|other| other.len() as u32 + 1).sum()
    };
    // `r0 = action; exit`
    let mut code = vec![0xb4, 0, 0, 0];
    code.extend(action.to_le_bytes());
    code.extend([0x95, 0, 0, 0, 0, 0, 0, 0]);
    let mut symbols = vec![0; SYMBOL];
    symbols.extend(name(NAME).to_le_bytes());
    // A global function of the third section.
    symbols.extend([0x12, 0, 3, 0]);
    symbols.extend([0, code.len() as u64].map(u64::to_le_bytes).concat());

    let sections: [Section<'_>; 4] = [
        (".strtab", [3, 0], [0, 0], 0, &names),
        (".symtab", [2, 0], [1, 1], SYMBOL, &symbols),
        ("classifier", [1, 6], [0, 0], 0, &code),
        ("license", [1, 2], [0, 0], 0, b"GPL\0"),
    ];
    let mut body = Vec::new();
    let mut headers = vec![0; HEAD];
    for (called, [kind, flags], links, entry, content) in sections {
        body.resize(body.len().next_multiple_of(8), 0);
        let at = HEAD + body.len();
        headers.extend([name(called), kind].map(u32::to_le_bytes).concat());
        headers
            .extend([flags as usize, 0, at, content.len()].map(|word| (word as u64).to_le_bytes()).concat());
        headers.extend(links.map(u32::to_le_bytes).concat());
        headers.extend([8, entry as u64].map(u64::to_le_bytes).concat());
        body.extend(content);
    }
    body.resize(body.len().next_multiple_of(8), 0);
    let mut object = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    object.extend([1u16, 247].map(u16::to_le_bytes).concat());
    object.extend(1u32.to_le_bytes());
    object.extend([0, 0, (HEAD + body.len()) as u64].map(u64::to_le_bytes).concat());
    object.extend(0u32.to_le_bytes());
    let count = (headers.len() / HEAD) as u16;
    object.extend([HEAD as u16, 0, 0, HEAD as u16, count, 1].map(u16::to_le_bytes).concat());
    [object, body, headers].concat()
}
