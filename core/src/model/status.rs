//! The label, the question and how well the broker knows.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $type:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal, $title:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub enum $type { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)* }

        impl $type {
            /// All values.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The value as it stands in JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The value for people.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// The value that stands so in JSON.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.title())
            }
        }
    };
}

words! {
    /// The label of a session host.
    Status {
        /// Passes all fatal and non-fatal checks.
        Available = "available", "Available";
        /// Connectable, and something non-fatal is wrong.
        NeedsAssistance = "needs_assistance", "Needs Assistance";
        /// Announced that it powers off, reboots or suspends.
        Shutdown = "shutdown", "Shutdown";
        /// Not heard, not settled, a fatal check fails, banned, or awaiting approval.
        Unavailable = "unavailable", "Unavailable";
        /// Between switch and commit of an upgrade, inside its deadline.
        Upgrading = "upgrading", "Upgrading";
        /// The last upgrade failed.
        UpgradeFailed = "upgrade_failed", "Upgrade Failed";
    }
}

words! {
    /// What the front end wants a connection for.
    Intent {
        /// A new session.
        New = "new", "new session";
        /// Back to one's own session.
        Reconnect = "reconnect", "reconnect";
    }
}

words! {
    /// How well the broker knows that a host is there.
    Confidence {
        /// Beats arrive.
        Confirmed = "confirmed", "Confirmed";
        /// The stream ended without a goodbye, or two beats are missing; the lease still runs.
        Suspect = "suspect", "Suspect";
        /// Known from before this broker's start, not heard yet.
        Unverified = "unverified", "Unverified";
        /// Not there.
        Absent = "absent", "Absent";
    }
}

words! {
    /// May the machine be powered off without throwing somebody out?
    SafeToPowerOff {
        /// Nobody has a session, and the host itself said so.
        Yes = "yes", "yes";
        /// Somebody has a session.
        No = "no", "no";
        /// The number of sessions is not known.
        Unknown = "unknown", "unknown";
    }
}
