//! What may happen in a run, as a struct with a flag for each: one mixture is all of them, another is drawn.

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What may happen in a run.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Features {
            $($(#[$doc])* pub $name: bool,)*
        }

        impl Features {
            pub const ALL: Self = Self { $($name: true,)* };

            /// Each feature on or off by the throw of a coin.
            pub fn swarm(rng: &mut $crate::rng::Rng) -> Self {
                Self { $($name: rng.flip(),)* }
            }

            /// The names of those that are on.
            pub fn names(&self) -> Vec<&'static str> {
                let all = [$((stringify!($name), self.$name)),*];
                all.into_iter().filter(|f| f.1).map(|f| f.0).collect()
            }
        }
    };
}

pub(crate) use features;
