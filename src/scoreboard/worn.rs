//! Why a worker asks to be replaced.
//!
//! Owns the reasons and how they are stored in a row. Decides nothing: the worker room does.

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Worn {
    /// It has served that many requests.
    Requests(u64),
    /// It has run for that many seconds.
    Lifetime(u64),
    /// It holds that many bytes of memory.
    Memory(u64),
    /// That many of its threads are in requests that were given up.
    Stuck(u64),
}

/// What is left of a number beside the reason.
const NUMBER_BITS: u32 = 56;

impl Worn {
    /// The reason, and how much of it.
    #[must_use]
    pub const fn parts(self) -> (&'static str, u64) {
        match self {
            Self::Requests(number) => ("requests", number),
            Self::Lifetime(number) => ("lifetime", number),
            Self::Memory(number) => ("memory", number),
            Self::Stuck(number) => ("stuck", number),
        }
    }

    pub(super) const fn to_raw(self) -> u64 {
        let (kind, number) = match self {
            Self::Requests(number) => (1, number),
            Self::Lifetime(number) => (2, number),
            Self::Memory(number) => (3, number),
            Self::Stuck(number) => (4, number),
        };
        kind << NUMBER_BITS | (number & (u64::MAX >> (u64::BITS - NUMBER_BITS)))
    }

    pub(super) const fn from_raw(raw: u64) -> Option<Self> {
        let number = raw & (u64::MAX >> (u64::BITS - NUMBER_BITS));
        match raw >> NUMBER_BITS {
            1 => Some(Self::Requests(number)),
            2 => Some(Self::Lifetime(number)),
            3 => Some(Self::Memory(number)),
            4 => Some(Self::Stuck(number)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_comes_back_as_it_was_stored() {
        for worn in [
            Worn::Requests(1),
            Worn::Lifetime(86_400),
            Worn::Memory(1 << 40),
            Worn::Stuck(0),
        ] {
            assert_eq!(Worn::from_raw(worn.to_raw()), Some(worn));
        }
        assert_eq!(Worn::from_raw(0), None);
    }
}
