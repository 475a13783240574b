//! What an attempt is told: to stop, that its instance goes, or that its right is gone.
//!
//! A slot and not a queue. Invariant: an order that was not taken yet is replaced only by one that is as strong or
//! stronger, so that a fence always arrives and nothing is dropped for want of room.

use std::time::Duration;

use tokio::sync::watch;

/// What a supervisor is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The instance is about to be taken away: SIGTERM, wait, SIGKILL, and the job runs elsewhere; what was granted is
    /// published.
    Interrupt {
        /// The wait at most.
        grace: Duration,
        /// For people.
        reason: String,
    },
    /// SIGTERM, wait, SIGKILL.
    Stop {
        /// The wait.
        grace: Duration,
        /// For the log.
        reason: String,
    },
    /// The epoch is closed.
    Fence {
        /// For the log.
        reason: String,
    },
}

impl Order {
    fn strength(&self) -> u8 {
        match self {
            Self::Interrupt { .. } => 0,
            Self::Stop { .. } => 1,
            Self::Fence { .. } => 2,
        }
    }
}

/// Gives orders to an attempt.
#[derive(Clone, Debug)]
pub(super) struct Orders(watch::Sender<Option<Order>>);

/// Takes the orders of an attempt.
#[derive(Debug)]
pub(super) struct OrdersTaken(watch::Receiver<Option<Order>>);

/// Both ends.
pub(super) fn orders() -> (Orders, OrdersTaken) {
    let (sender, receiver) = watch::channel(None);
    (Orders(sender), OrdersTaken(receiver))
}

impl Orders {
    /// Never waits, never fails: an attempt that is over needs no order.
    pub(super) fn give(&self, order: Order) {
        self.0.send_if_modified(|standing| {
            let stands = standing.as_ref().is_some_and(|standing| standing.strength() > order.strength());
            if !stands {
                *standing = Some(order);
            }
            !stands
        });
    }
}

impl OrdersTaken {
    /// The next order, or the strongest of those that came meanwhile. Waits for ever when nobody can give one any more.
    /// Safe to cancel.
    pub(super) async fn next(&mut self) -> Order {
        while self.0.changed().await.is_ok() {
            if let Some(order) = self.0.borrow_and_update().clone() {
                return order;
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(seconds: u64) -> Order {
        Order::Stop { grace: Duration::from_secs(seconds), reason: "canceled".to_owned() }
    }

    fn fence() -> Order {
        Order::Fence { reason: "closed".to_owned() }
    }

    #[tokio::test]
    async fn a_fence_arrives_whatever_else_is_ordered() {
        let (orders, mut taken) = orders();
        for seconds in 0..1000 {
            orders.give(stop(seconds));
        }
        orders.give(fence());
        orders.give(stop(7));
        assert_eq!(taken.next().await, fence());
        let nothing = tokio::time::timeout(Duration::from_millis(10), taken.next()).await;
        assert!(nothing.is_err(), "a stop after a fence is none");
    }

    #[tokio::test]
    async fn an_interruption_takes_no_stop_away() {
        let (orders, mut taken) = orders();
        let interrupt = Order::Interrupt { grace: Duration::ZERO, reason: "going".to_owned() };
        orders.give(interrupt.clone());
        assert_eq!(taken.next().await, interrupt);
        orders.give(interrupt.clone());
        orders.give(stop(3));
        orders.give(interrupt);
        assert_eq!(taken.next().await, stop(3));
    }

    #[tokio::test]
    async fn the_last_stop_counts() {
        let (orders, mut taken) = orders();
        orders.give(stop(30));
        assert_eq!(taken.next().await, stop(30));
        orders.give(stop(20));
        orders.give(stop(1));
        assert_eq!(taken.next().await, stop(1));
    }
}
