// The rule of adam.rs. Slots 0 and 1 are the moments.

const STEP_SIZE: u32 = 0u;
const ONE_MINUS_BETA1: u32 = 1u;
const ONE_MINUS_BETA2: u32 = 2u;
const EPSILON: u32 = 3u;

fn adam(g: f32, state: State) -> State {
    let m = flush(state.slot0 + flush(flush(g - state.slot0) * coefficient(ONE_MINUS_BETA1)));
    let v = flush(state.slot1 + flush(flush(flush(g * g) - state.slot1) * coefficient(ONE_MINUS_BETA2)));
    let step = flush(flush(m * coefficient(STEP_SIZE)) / flush(flush(sqrt(v)) + coefficient(EPSILON)));
    return State(flush(state.variable - step), m, v);
}
