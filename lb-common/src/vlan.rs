//! VLAN tags that a frame carries behind its MACs: none, one, or two.

/// One tag: 802.1Q, or the service tag of 802.1ad. 0 is no tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Tag(u16);

/// EtherTypes of both kinds in wire order.
const CUSTOMER: u32 = 0x0081;
const SERVICE: u32 = 0xa888;

impl Tag {
    const THERE: u16 = 0x8000;
    const IS_SERVICE: u16 = 0x1000;
    const ID: u16 = 0x0fff;

    /// An 802.1Q tag.
    pub const fn customer(id: u16) -> Self {
        Self(Self::THERE | id & Self::ID)
    }

    /// An 802.1ad tag.
    pub const fn service(id: u16) -> Self {
        Self(Self::THERE | Self::IS_SERVICE | id & Self::ID)
    }

    /// The VLAN.
    pub const fn id(self) -> u16 {
        self.0 & Self::ID
    }

    /// Whether this is a service tag.
    pub const fn is_service(self) -> bool {
        self.0 & Self::IS_SERVICE != 0
    }

    /// The four bytes that stand in front of the EtherType, in wire order. The priority is 0.
    #[inline(always)]
    pub const fn wire(self) -> u32 {
        let kind = if self.is_service() { SERVICE } else { CUSTOMER };
        kind | (self.id().swap_bytes() as u32) << 16
    }

    /// The tag of such four bytes.
    #[inline(always)]
    pub const fn from_wire(word: u32) -> Self {
        let id = ((word >> 16) as u16).swap_bytes();
        if word & 0xffff == SERVICE { Self::service(id) } else { Self::customer(id) }
    }
}

/// All tags of a frame: the outermost in the lower half, the one within it in the upper half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Tags(pub u32);

impl Tags {
    /// An untagged frame's.
    pub const NONE: Self = Self(0);

    /// One tag.
    #[inline(always)]
    pub const fn one(tag: Tag) -> Self {
        Self(tag.0 as u32)
    }

    /// These tags with another one around them; `None`: there are two already.
    #[inline(always)]
    pub const fn within(self, outer: Tag) -> Option<Self> {
        if self.0 >> 16 != 0 { None } else { Some(Self(outer.0 as u32 | self.0 << 16)) }
    }

    /// Whether there is none.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The outermost.
    #[inline(always)]
    pub const fn outer(self) -> Tag {
        Tag(self.0 as u16)
    }

    /// The one within it, if there are two.
    #[inline(always)]
    pub const fn inner(self) -> Option<Tag> {
        let inner = (self.0 >> 16) as u16;
        if inner == 0 { None } else { Some(Tag(inner)) }
    }

    /// Bytes that they take.
    #[inline(always)]
    pub const fn bytes(self) -> u32 {
        4 * ((self.0 & 0xffff != 0) as u32 + (self.0 >> 16 != 0) as u32)
    }
}

impl core::fmt::Display for Tag {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}{}", self.id(), if self.is_service() { " (802.1ad)" } else { "" })
    }
}

impl core::fmt::Display for Tags {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.outer())?;
        self.inner().map_or(Ok(()), |inner| write!(f, ", {inner}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_pushed_from_the_inside_and_no_more_than_two() {
        let one = Tags::NONE.within(Tag::customer(7)).expect("room");
        let two = one.within(Tag::service(100)).expect("room");

        assert_eq!((one, one.bytes(), one.inner()), (Tags::one(Tag::customer(7)), 4, None));
        assert_eq!((two.outer(), two.inner()), (Tag::service(100), Some(Tag::customer(7))));
        assert_eq!((two.bytes(), Tags::NONE.bytes()), (8, 0));
        assert_eq!(two.within(Tag::customer(1)), None);
        assert_eq!(two.to_string(), "100 (802.1ad), 7");
    }

    #[test]
    fn the_wire_has_kind_and_number_and_a_priority_is_forgotten() {
        for (tag, bytes) in
            [(Tag::customer(7), [0x81, 0, 0, 7]), (Tag::service(0xabc), [0x88, 0xa8, 0x0a, 0xbc])]
        {
            assert_eq!(tag.wire().to_le_bytes(), bytes);
            assert_eq!(Tag::from_wire(u32::from_le_bytes(bytes)), tag);
        }
        assert_eq!(Tag::from_wire(u32::from_le_bytes([0x81, 0, 0x60, 7])), Tag::customer(7));
    }
}
