//! Join tokens: `mst_<id>_<secret>`. The id finds the record, the secret proves it; the store
//! holds only a hash of it.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;

use crate::ca::sha256_hex;

const PREFIX: &str = "mst_";
/// Hex digits of the id: eight random bytes.
const ID_DIGITS: usize = 16;
/// Hex digits of the secret: 32 random bytes, far beyond guessing, so that a plain hash does.
const SECRET_DIGITS: usize = 64;

/// A join token with its secret. Never shown by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
}

impl Token {
    /// A token made of these random bytes.
    #[must_use]
    pub fn from_random(id: [u8; 8], secret: [u8; 32]) -> Self {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            id: hex(&id),
            secret: hex(&secret),
        }
    }

    /// The token that stands so; none if it is no token.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.trim().strip_prefix(PREFIX)?.split_once('_')?;
        let digits = |text: &str, count: usize| {
            text.len() == count && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        (digits(id, ID_DIGITS) && digits(secret, SECRET_DIGITS)).then(|| Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// Names the token without its secret.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole token: a secret, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, self.secret)
    }

    /// The hash that is stored.
    #[must_use]
    pub fn secret_sha256(&self) -> String {
        sha256_hex(self.secret.as_bytes())
    }

    /// Is this the secret with that hash?
    #[must_use]
    pub fn matches(&self, secret_sha256: &str) -> bool {
        verify_slices_are_equal(self.secret_sha256().as_bytes(), secret_sha256.as_bytes()).is_ok()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, secret)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_shown_and_nothing_else_is_one() {
        let token = Token::from_random([0xab; 8], [0xcd; 32]);
        let text = token.reveal();
        assert_eq!(Token::parse(&format!(" {text}\n")), Some(token.clone()));
        assert!(token.matches(&token.secret_sha256()));
        let other = Token::from_random([0xab; 8], [0xce; 32]);
        assert!(!other.matches(&token.secret_sha256()));
        for wrong in [
            "",
            "mst_",
            "mst_ab_cd",
            &text[1..],
            &text[..text.len() - 1],
            &text.to_uppercase(),
        ] {
            assert_eq!(Token::parse(wrong), None, "{wrong:?}");
        }
        assert!(!format!("{token:?}").contains("cdcd"), "no secret in Debug");
    }
}
