//! The cordon of this instance, as the managers of its region tell it.
//!
//! A number and whether it stands: whatever comes twice, late or in another order, the highest number counts, and a lifted
//! one never stands again. It is kept for as long as the coordinator lives, over connections, and nowhere else: a
//! coordinator that starts is told before it is given work.

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cordons {
    highest: u64,
    stands: bool,
}

impl Cordons {
    /// Takes in what a manager said; says whether that changed anything.
    pub(super) fn told(&mut self, number: u64, lifted: bool) -> bool {
        let before = *self;
        if number > self.highest {
            *self = Self { highest: number, stands: !lifted };
        } else if number == self.highest {
            self.stands &= !lifted;
        }
        *self != before
    }

    /// The number of the cordon that stands.
    pub(super) fn standing(&self) -> Option<u64> {
        self.stands.then_some(self.highest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_number_counts_in_whatever_order_it_comes() {
        let mut cordons = Cordons::default();
        assert_eq!(cordons.standing(), None);
        assert!(cordons.told(2, false) && !cordons.told(2, false));
        assert_eq!(cordons.standing(), Some(2));
        assert!(!cordons.told(1, true) && !cordons.told(1, false), "old news");
        assert!(cordons.told(2, true) && !cordons.told(2, true));
        assert!(!cordons.told(2, false), "a lifted one never stands again");
        assert_eq!(cordons.standing(), None);
        assert!(cordons.told(5, true), "lifted before it was heard of");
        assert!(!cordons.told(5, false) && !cordons.told(3, false));
        assert_eq!(cordons.standing(), None);
        assert!(cordons.told(6, false));
        assert_eq!(cordons.standing(), Some(6));
    }

    #[test]
    fn there_is_no_cordon_of_number_nothing() {
        let mut cordons = Cordons::default();
        assert!(!cordons.told(0, false));
        assert_eq!(cordons.standing(), None);
    }
}
