//! Which cards of which machine a job gets, so that what is left over is of use to the jobs that will come.
//!
//! The measure is that of "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient
//! Descent" (USENIX ATC 2023): a card's free share is stranded for a kind of job if that kind could not use it, be it
//! that the share is too small, the model is not asked for, or the machine lacks the processor or memory beside it. The
//! expectation over the known mix of jobs is the machine's stranding, and a job goes where it makes that grow least.
//! What follows of it: shares are filled up before whole cards are broken and rare models are kept for those who must
//! have them.
//!
//! That measure looks one job ahead, and sees that a machine runs out of processor beside its cards only when the next
//! job does not fit any more. So free cards that are **starved** count as much: those for which the machine's processor
//! or memory does not last if the jobs that come need as much for each card as the mix does on the average. What follows:
//! jobs that need much processor for little of a card go where there is much processor for each card, from the beginning.
//!
//! Integers only: thousandths of a card, times the weight of a kind of job.

/// A whole card.
pub const WHOLE: u32 = 1000;

/// A set of card models, of the at most 64 that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Models(u64);

impl Models {
    /// Whatever model.
    pub const ANY: Self = Self(u64::MAX);
    /// None.
    pub const NONE: Self = Self(0);

    /// The model with this number, below 64; [`Self::NONE`] for another number.
    pub const fn one(number: u32) -> Self {
        if number < 64 { Self(1 << number) } else { Self::NONE }
    }

    /// Both sets together.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// What a job needs of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Need {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// How many cards; several are always whole.
    pub cards: u32,
    /// Thousandths of each card, 1 to [`WHOLE`]; without meaning when no card is needed.
    pub share: u32,
    /// The models that will do.
    pub models: Models,
}

/// What a machine has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The model of its cards.
    pub model: Models,
    /// Thousandths that are free of each card.
    pub cards: Vec<u32>,
}

/// Which cards a job gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// None: it needs none.
    Without,
    /// A share of this one.
    Share(usize),
    /// The first cards that are whole.
    Whole,
}

impl Machine {
    /// Whether it has what the job needs beside cards.
    fn has_beside(&self, need: &Need) -> bool {
        need.cpu_milli <= self.cpu_milli && need.memory_bytes <= self.memory_bytes
    }

    /// Thousandths of cards that are free.
    pub fn free(&self) -> u64 {
        self.cards.iter().map(|&card| u64::from(card)).sum()
    }

    /// The ways in which the job can be placed here; of cards that are alike, the first.
    pub fn ways(&self, need: &Need) -> Vec<Way> {
        if !self.has_beside(need) {
            return Vec::new();
        }
        if need.cards == 0 {
            return vec![Way::Without];
        }
        if !need.models.meets(self.model) {
            return Vec::new();
        }
        if need.cards > 1 || need.share >= WHOLE {
            let whole = self.cards.iter().filter(|&&card| card == WHOLE).count();
            return if whole >= need.cards as usize { vec![Way::Whole] } else { Vec::new() };
        }
        let first_alike = |&(index, card): &(usize, &u32)| !self.cards[..index].contains(card);
        let cards = self.cards.iter().enumerate().filter(|(_, card)| **card >= need.share);
        cards.filter(first_alike).map(|(index, _)| Way::Share(index)).collect()
    }

    /// Places the job in one of its [`Self::ways`].
    pub fn take(&mut self, need: &Need, way: Way) {
        self.cpu_milli = self.cpu_milli.saturating_sub(need.cpu_milli);
        self.memory_bytes = self.memory_bytes.saturating_sub(need.memory_bytes);
        match way {
            Way::Without => {}
            Way::Share(index) => self.cards[index] = self.cards[index].saturating_sub(need.share),
            Way::Whole => {
                let whole = self.cards.iter_mut().filter(|card| **card == WHOLE);
                whole.take(need.cards as usize).for_each(|card| *card = 0);
            }
        }
    }
}

/// The jobs that are expected: kinds with weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mix {
    kinds: Vec<(Need, u32)>,
}

impl Mix {
    /// A mix of kinds of jobs, each with its weight (how often it comes).
    pub fn new(kinds: Vec<(Need, u32)>) -> Self {
        Self { kinds }
    }

    /// Thousandths of the machine's cards that are stranded or starved, summed over the kinds by weight.
    pub fn wasted(&self, machine: &Machine) -> u64 {
        let free = machine.free();
        if free == 0 {
            return 0;
        }
        let (mut stranded, mut weights, mut asked) = (0, 0, Asked::default());
        for (need, weight) in &self.kinds {
            stranded += u64::from(*weight) * stranded_for(need, machine, free);
            weights += u64::from(*weight);
            if need.models.meets(machine.model) {
                asked.add(need, *weight);
            }
        }
        stranded + weights * asked.starved(machine, free)
    }

    /// The best way to place the job on the machine and what it costs; `None` when it does not fit.
    pub fn best_way(&self, need: &Need, machine: &Machine) -> Option<(Cost, Way)> {
        let ways = machine.ways(need);
        let before = if ways.is_empty() { 0 } else { signed(self.wasted(machine)) };
        let cost = |way: Way| {
            let mut after = machine.clone();
            after.take(need, way);
            Cost { gradient: signed(self.wasted(&after)) - before, left: left(need, machine, way) }
        };
        ways.into_iter().map(|way| (cost(way), way)).min_by_key(|&(cost, _)| cost)
    }
}

/// What the jobs with cards of a mix ask for together.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    cards: u128,
    cpu_milli: u128,
    memory_bytes: u128,
}

impl Asked {
    fn add(&mut self, need: &Need, weight: u32) {
        if need.cards > 0 {
            let weight = u128::from(weight);
            self.cards += weight * u128::from(need.cards) * u128::from(need.share);
            self.cpu_milli += weight * u128::from(need.cpu_milli);
            self.memory_bytes += weight * u128::from(need.memory_bytes);
        }
    }

    /// Of the machine's free thousandths, those for which its processor or its memory does not last.
    fn starved(&self, machine: &Machine, free: u64) -> u64 {
        let lasts = |there: u64, asked: u128| match (u128::from(there) * self.cards).checked_div(asked) {
            Some(cards) => u64::try_from(cards).unwrap_or(u64::MAX),
            None => u64::MAX,
        };
        let fed =
            lasts(machine.cpu_milli, self.cpu_milli).min(lasts(machine.memory_bytes, self.memory_bytes));
        free.saturating_sub(fed)
    }
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// What a placement costs: what it strands and starves, then how much it leaves on the cards that it touches or beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// How much more is stranded or starved.
    pub gradient: i64,
    /// What is left over, in thousandths of cards.
    pub left: u64,
}

/// Free thousandths of the machine after the job, and of the card that it shares.
fn left(need: &Need, machine: &Machine, way: Way) -> u64 {
    let all = machine.free().saturating_sub(u64::from(need.cards) * u64::from(need.share));
    match way {
        Way::Share(index) => all + u64::from(machine.cards[index].saturating_sub(need.share)),
        Way::Without | Way::Whole => all,
    }
}

/// Thousandths of the machine's cards of which a job of this kind has no use.
fn stranded_for(need: &Need, machine: &Machine, free: u64) -> u64 {
    if need.cards == 0 || !need.models.meets(machine.model) || !machine.has_beside(need) {
        return free;
    }
    let asked = if need.cards > 1 { WHOLE } else { need.share };
    let (mut useful, mut stranded) = (0, 0);
    for &card in &machine.cards {
        if card >= asked {
            useful += 1;
        } else {
            stranded += u64::from(card);
        }
    }
    if useful < need.cards { free } else { stranded }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn machine(cpu: u64, cards: &[u32]) -> Machine {
        Machine {
            cpu_milli: cpu * 1000,
            memory_bytes: 256 * GIB,
            model: Models::one(0),
            cards: cards.to_vec(),
        }
    }

    fn need(cpu: u64, cards: u32, share: u32) -> Need {
        Need { cpu_milli: cpu * 1000, memory_bytes: GIB, cards, share, models: Models::ANY }
    }

    fn best(mix: &Mix, need: &Need, machines: &[Machine]) -> Option<(usize, Way)> {
        let each = machines.iter().enumerate();
        let fitting = each.filter_map(|(index, machine)| Some((mix.best_way(need, machine)?, index)));
        fitting.min_by_key(|((cost, _), index)| (*cost, *index)).map(|((_, way), index)| (index, way))
    }

    #[test]
    fn a_share_fills_a_broken_card_before_it_breaks_a_whole_one() {
        let mix = Mix::new(vec![(need(4, 1, 1000), 5), (need(4, 1, 500), 5)]);
        let machines = [machine(64, &[1000, 1000]), machine(64, &[1000, 500])];
        assert_eq!(best(&mix, &need(4, 1, 500), &machines), Some((1, Way::Share(1))));
        assert_eq!(best(&mix, &need(4, 2, 1000), &machines), Some((0, Way::Whole)));
        assert_eq!(best(&mix, &need(4, 3, 1000), &machines), None);
    }

    #[test]
    fn a_job_without_cards_leaves_the_processor_beside_free_cards() {
        let mix = Mix::new(vec![(need(8, 1, 1000), 1)]);
        let machines = [machine(12, &[1000]), machine(12, &[0])];
        assert_eq!(best(&mix, &need(8, 0, 0), &machines), Some((1, Way::Without)));
    }

    #[test]
    fn processor_is_spent_where_there_is_much_of_it_for_each_card() {
        // Nothing is stranded by either placement: the next whole card fits on both machines.
        let mix = Mix::new(vec![(need(8, 1, 1000), 1)]);
        let machines = [machine(32, &[1000; 4]), machine(104, &[1000, 1000])];
        assert_eq!(best(&mix, &need(16, 0, 0), &machines), Some((1, Way::Without)));
        assert_eq!(best(&mix, &need(16, 1, 1000), &machines), Some((1, Way::Whole)));
        assert_eq!(best(&mix, &need(2, 1, 1000), &machines), Some((1, Way::Whole)), "least is left there");
        assert_eq!(mix.wasted(&machines[0]), 0);
        assert_eq!(mix.wasted(&machine(12, &[1000; 4])), 2500, "12 cores last for one and a half of four");
    }

    #[test]
    fn a_rare_model_is_kept_for_those_who_ask_for_it() {
        let rare = Machine { model: Models::one(1), ..machine(64, &[1000]) };
        let asks = Need { models: Models::one(1), ..need(4, 1, 1000) };
        let mix = Mix::new(vec![(asks, 1), (need(4, 1, 1000), 9)]);
        let machines = [rare, machine(64, &[1000])];
        assert_eq!(best(&mix, &need(4, 1, 1000), &machines), Some((1, Way::Whole)));
        assert_eq!(best(&mix, &asks, &machines), Some((0, Way::Whole)));
        let nobody = Need { models: Models::NONE, ..asks };
        assert_eq!(best(&mix, &nobody, &machines), None);
    }

    proptest! {
        #[test]
        fn a_placement_takes_what_was_asked_and_never_more_than_there_is(
            cards in prop::collection::vec(prop::sample::select(vec![0u32, 250, 500, 1000]), 0..5),
            (cpu, count, share) in (0u64..5, 0u32..4, 1u32..=1000),
        ) {
            let share = if count > 1 { WHOLE } else { share };
            let (need, before) = (need(cpu, count, share), machine(3, &cards));
            for way in before.ways(&need) {
                let mut after = before.clone();
                after.take(&need, way);
                prop_assert_eq!(before.cpu_milli - after.cpu_milli, need.cpu_milli);
                prop_assert_eq!(before.free() - after.free(), u64::from(count) * u64::from(share));
            }
            let whole = cards.iter().filter(|&&card| card == WHOLE).count();
            let room = if count > 1 || share == WHOLE { whole >= count as usize } else {
                count == 0 || cards.iter().any(|&card| card >= share)
            };
            prop_assert_eq!(!before.ways(&need).is_empty(), cpu <= 3 && room);
        }

        #[test]
        fn no_more_is_wasted_than_twice_what_is_free(
            cards in prop::collection::vec(0u32..=1000, 0..9), asked in (1u32..9, 1u32..=1000),
        ) {
            let machine = machine(64, &cards);
            let mix = Mix::new(vec![(need(1, asked.0, asked.1), 1)]);
            prop_assert!(mix.wasted(&machine) <= 2 * machine.free());
        }
    }
}
