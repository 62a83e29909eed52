// Gated linear attention, forward and backward, for one (sequence, head) per task. With h [K, V] the state before a
// chunk, and decays that are a number per token or (VECTOR) one per token and key channel,
//
//     O = (grown Q) h + B V,   B_ij = sum over channels of q_i D_ij k_j  (i >= j);   h' = diag(grown_C) h + (left K)^T V
//
// D_ij is the product of the decays themselves, per channel where they differ: no quotient, so nothing overflows.

#include "../native/call.h"

namespace hybridlm {
namespace {

template <class T, class In>
struct Problem {
    Call call;
    const In *q, *k, *v;     // [tokens, H, K], [tokens, H, K], [tokens, H, V]
    const T* decay;          // [tokens, H, K] or [tokens, H]
    const T* initial_state;  // [N, H, K, V] or null
    T* states;               // [segments, H, K, V] at each segment's start, or null

    const Layout& layout() const { return call.layout; }
    T scale() const { return T(call.scale); }
};

template <class T, bool VECTOR>
struct Chunk {
    Decays<T> decays;                // of the head, unless VECTOR
    T *q, *k, *a;                    // [C, K]: scaled queries, keys, decays per channel
    T *grown, *left;                 // [C, K] per channel
    T *read, *write;                 // [C, K]: grown q, left k
    T *q_cols, *k_cols, *a_cols;     // transposes [K, C]
    T* whole;                        // [K]
    alignas(64) T b[C][C];

    void take(Arena& arena, const Sizes<T>& size) {
        for (T** x : {&q, &k, &a, &grown, &left, &read, &write, &q_cols, &k_cols, &a_cols})
            *x = arena.take<T>(C * size.K);
        whole = arena.take<T>(size.K);
    }

    template <class In>
    void prepare(const Problem<T, In>& p, const Sizes<T>& size, int64_t head, int64_t start, int count, int64_t ahead) {
        const Layout& x = p.layout();
        load(Tokens<const In>(p.q, x.heads, head, x.K), start, count, ahead, q, size.K);
        load(Tokens<const In>(p.k, x.heads, head, x.K), start, count, ahead, k, size.K);
        const T scale = p.scale();
        for (int64_t i = 0; i < C * size.K; i += LANES<T>) vec(q + i) *= scale;
        transpose<T>(C, size.K, q, size.K, q_cols, C);
        transpose<T>(C, size.K, k, size.K, k_cols, C);
        if constexpr (VECTOR) {
            load(Tokens<const T>(p.decay, x.heads, head, x.K), start, count, ahead, a, size.K, T(1));
            transpose<T>(C, size.K, a, size.K, a_cols, C);
            decays_per_channel(size);
            products_per_channel(size);
        } else {
            decays.prepare(Tokens<const T>(p.decay, x.heads, head, 1), start, count);
            scale_rows(decays.grown, q, size.K, read, size.K, size.K);
            scale_rows(decays.left, k, size.K, write, size.K, size.K);
            std::fill(whole, whole + size.K, decays.whole());
            multiply<T>(C, C, size.K, {q_cols, 1, C}, k_cols, C, &b[0][0], C);
            for (int i = 0; i < C; i++)
                for (int j = 0; j < C; j += LANES<T>)
                    vec(&b[i][j]) = up_to<T>(i, j, vec(&b[i][j]) * vec(&decays.pair[i][j]));
        }
    }

    void decays_per_channel(const Sizes<T>& size) {
        for (int64_t m = 0; m < size.K; m += LANES<T>) {
            Vec<T> product = Vec<T>{} + 1;
            for (int i = 0; i < C; i++) {
                vec(grown + i * size.K + m) = product *= vec(a + i * size.K + m);
                vec(read + i * size.K + m) = product * vec(q + i * size.K + m);
            }
            vec(whole + m) = product;
            product = Vec<T>{} + 1;
            for (int j = C - 1; j >= 0; j--) {
                vec(left + j * size.K + m) = product;
                vec(write + j * size.K + m) = product * vec(k + j * size.K + m);
                product *= vec(a + j * size.K + m);
            }
        }
    }

    // B, channel after channel: lane j of `decay` is D_ij, which every step i multiplies by a_i and starts at 1.
    void products_per_channel(const Sizes<T>& size) {
        constexpr int L = LANES<T>;
        alignas(64) T one[C][C] = {};
        for (int i = 0; i < C; i++) one[i][i] = 1;
        for (int j = 0; j < C; j += L) {
            Vec<T> sum[C] = {};
            for (int64_t m = 0; m < size.K; m++) {
                Vec<T> decay = {}, key = vec(k_cols + m * C + j);
#pragma GCC unroll 16
                for (int i = 0; i < C; i++) {
                    decay = decay * a_cols[m * C + i] + vec(&one[i][j]);
                    sum[i] += q_cols[m * C + i] * (decay * key);
                }
            }
            for (int i = 0; i < C; i++) vec(&b[i][j]) = up_to<T>(i, j, sum[i]);
        }
    }
};

// state = diag(whole) from + left^T values, with left [C, K] and values [C, V].
template <class T>
void advance(const T* whole, const T* from, const T* left, const T* values, const Sizes<T>& size, T* state) {
    for (int64_t m = 0; m < size.K; m++)
        for (int64_t n = 0; n < size.V; n += LANES<T>)
            vec(state + m * size.ldv + n) = whole[m] * vec(from + m * size.ldv + n);
    multiply<T>(size.K, size.V, C, {left, 1, size.K}, values, size.ldv, state, size.ldv, 1);
}

// Forward

template <class T, class In>
struct ForwardArguments {
    Problem<T, In> problem;
    In* o;           // [tokens, H, V]
    T* final_state;  // [N, H, K, V]
};

template <class T, class In, bool VECTOR>
class Forward {
    const Problem<T, In>& p;
    const ForwardArguments<T, In>& outputs;
    Sizes<T> size;
    Arena arena;
    Chunk<T, VECTOR> chunk;
    T *state, *v, *out, *ones;  // [K, V], [C, V], [C, V], [C]

    void take() {
        chunk.take(arena, size);
        state = arena.take<T>(size.K * size.ldv);
        v = arena.take<T>(C * size.ldv);
        out = arena.take<T>(C * size.ldv);
        ones = arena.take<T>(C);
    }

   public:
    explicit Forward(const ForwardArguments<T, In>& x) : p(x.problem), outputs(x), size(p.layout()) {
        take();
        arena.allocate();
        take();
        std::fill(ones, ones + C, T(1));
    }

    void run(int64_t n, int64_t head) {
        const Layout& x = p.layout();
        int64_t matrix = x.K * x.V, segment = x.first_segment(n);
        const T* initial = p.initial_state ? p.initial_state + (n * x.heads + head) * matrix : nullptr;
        load_state(initial, x.K, x.V, state, size.ldv);
        for (int64_t t = 0; t < x.length(n); t += C) {
            if (p.states && t % SEGMENT == 0)
                store_state(state, size.ldv, x.K, x.V, p.states + (segment++ * x.heads + head) * matrix);
            int64_t start = x.begin[n] + t;
            int count = int(std::min<int64_t>(C, x.length(n) - t));
            chunk.prepare(p, size, head, start, count, C);
            load(Tokens<const In>(p.v, x.heads, head, x.V), start, count, C, v, size.ldv);
            multiply<T>(C, size.V, size.K, {chunk.read, size.K, 1}, state, size.ldv, out, size.ldv);
            add_causal<T, false>(chunk.b, v, size.ldv, ones, out, size.ldv, size.V);
            store(out, size.ldv, start, count, C, Tokens<In>(outputs.o, x.heads, head, x.V));
            advance(chunk.whole, state, chunk.write, v, size, state);
        }
        store_state(state, size.ldv, x.K, x.V, outputs.final_state + (n * x.heads + head) * matrix);
    }
};

// Backward

template <class T, class In>
struct BackwardArguments {
    Problem<T, In> problem;
    const In* dout;         // of o
    const T* dfinal_state;  // [N, H, K, V]
    In *dq, *dk, *dv;
    T *dg, *dinitial_state;  // dg: like the decays
};

template <class T, class In, bool VECTOR>
class Backward {
    static constexpr int CHUNKS = SEGMENT / C;

    const Problem<T, In>& p;
    const BackwardArguments<T, In>& grads;
    Sizes<T> size;
    Arena arena;
    Chunk<T, VECTOR> chunk[CHUNKS];
    T *states[CHUNKS], *v[CHUNKS];  // [K, V], [C, V]
    T* dstate;                      // [K, V], of the state behind the tokens done so far
    T *dout, *dv;                   // [C, V]
    T *dout_cols, *v_cols;          // [V, C]
    T* cols;                        // [K, C]
    T *dq, *dk, *dg;                // [C, K]
    T *ones, *through;              // [C]; [K]: h dh' summed over V
    alignas(64) T db[C][C];

    void take() {
        for (int i = 0; i < CHUNKS; i++) {
            chunk[i].take(arena, size);
            states[i] = arena.take<T>(size.K * size.ldv);
            v[i] = arena.take<T>(C * size.ldv);
        }
        dstate = arena.take<T>(size.K * size.ldv);
        for (T** x : {&dout, &dv, &dout_cols, &v_cols}) *x = arena.take<T>(C * size.ldv);
        for (T** x : {&cols, &dq, &dk, &dg}) *x = arena.take<T>(C * size.K);
        ones = arena.take<T>(C);
        through = arena.take<T>(size.K);
    }

   public:
    explicit Backward(const BackwardArguments<T, In>& x) : p(x.problem), grads(x), size(p.layout()) {
        take();
        arena.allocate();
        take();
        std::fill(ones, ones + C, T(1));
    }

    void run(int64_t n, int64_t head) {
        const Layout& x = p.layout();
        int64_t place = (n * x.heads + head) * x.K * x.V, length = x.length(n);
        int64_t first = x.first_segment(n), segments = (length + SEGMENT - 1) / SEGMENT;
        load_state(grads.dfinal_state + place, x.K, x.V, dstate, size.ldv);
        for (int64_t s = segments - 1; s >= 0; s--) {
            int64_t start = x.begin[n] + s * SEGMENT, end = x.begin[n] + std::min(length, (s + 1) * SEGMENT);
            rebuild(head, first + s, start, end);
            for (int64_t i = (end - start - 1) / C; i >= 0; i--)
                step(int(i), head, start + i * C, int(std::min<int64_t>(C, end - start - i * C)));
        }
        store_state(dstate, size.ldv, x.K, x.V, grads.dinitial_state + place);
    }

   private:
    // The segment's chunks, and the state before each from the one kept at its start.
    void rebuild(int64_t head, int64_t segment, int64_t start, int64_t end) {
        const Layout& x = p.layout();
        load_state(p.states + (segment * x.heads + head) * x.K * x.V, x.K, x.V, states[0], size.ldv);
        for (int i = 0; start + i * C < end; i++) {
            int64_t at = start + i * C;
            int count = int(std::min<int64_t>(C, end - at));
            chunk[i].prepare(p, size, head, at, count, -SEGMENT);
            load(Tokens<const In>(p.v, x.heads, head, x.V), at, count, -SEGMENT, v[i], size.ldv);
            if (at + C < end) advance(chunk[i].whole, states[i], chunk[i].write, v[i], size, states[i + 1]);
        }
    }

    void step(int i, int64_t head, int64_t start, int count) {
        const Layout& x = p.layout();
        const Chunk<T, VECTOR>& c = chunk[i];
        load(Tokens<const In>(grads.dout, x.heads, head, x.V), start, count, -C, dout, size.ldv);
        // dV = B^T dO + (left K) dh'
        multiply<T>(C, size.V, size.K, {c.write, size.K, 1}, dstate, size.ldv, dv, size.ldv);
        add_causal<T, true>(c.b, dout, size.ldv, ones, dv, size.ldv, size.V);
        store(dv, size.ldv, start, count, -C, Tokens<In>(grads.dv, x.heads, head, x.V));
        transpose<T>(C, size.V, dout, size.ldv, dout_cols, C);
        transpose<T>(C, size.V, v[i], size.ldv, v_cols, C);
        multiply<T>(size.K, C, size.V, {states[i], size.ldv, 1}, dout_cols, C, cols, C);
        transpose<T>(size.K, C, cols, C, dq, size.K);  // of grown q
        multiply<T>(size.K, C, size.V, {dstate, size.ldv, 1}, v_cols, C, cols, C);
        transpose<T>(size.K, C, cols, C, dk, size.K);  // of left k
        multiply<T>(C, C, size.V, {dout_cols, 1, C}, v_cols, C, &db[0][0], C);
        if constexpr (VECTOR)
            grads_per_channel(i);
        else
            grads_per_head(i);
        const T scale = p.scale();
        for (int64_t m = 0; m < C * size.K; m += LANES<T>) vec(dq + m) *= scale;
        store(dq, size.K, start, count, -C, Tokens<In>(grads.dq, x.heads, head, x.K));
        store(dk, size.K, start, count, -C, Tokens<In>(grads.dk, x.heads, head, x.K));
        store(dg, size.K, start, count, -C, Tokens<T>(grads.dg, x.heads, head, VECTOR ? x.K : 1));
        advance(c.whole, dstate, c.read, dout, size, dstate);
    }

    void grads_per_head(int i) {
        const Chunk<T, VECTOR>& c = chunk[i];
        const Decays<T>& d = c.decays;
        alignas(64) T from_start[C], to_end[C], pair[C][C], dg_head[C];
        for (int r = 0; r < C; r++)
            for (int j = 0; j < C; j += LANES<T>) {
                vec(&pair[r][j]) = vec(&c.b[r][j]) * vec(&db[r][j]);
                vec(&db[r][j]) = up_to<T>(r, j, vec(&db[r][j]) * vec(&d.pair[r][j]));
            }
        scale_rows(d.grown, dq, size.K, dq, size.K, size.K);
        scale_rows(d.left, dk, size.K, dk, size.K, size.K);
        dot_rows(c.q, size.K, dq, size.K, size.K, from_start);
        dot_rows(c.k, size.K, dk, size.K, size.K, to_end);
        gate_grads(pair, from_start, to_end, d.whole() * dot_states(states[i], dstate, size), dg_head);
        for (int t = 0; t < C; t++) dg[t * size.K] = dg_head[t];
        multiply<T>(C, size.K, C, {&db[0][0], C, 1}, c.k, size.K, dq, size.K, 1);
        multiply<T>(C, size.K, C, {&db[0][0], 1, C}, c.q, size.K, dk, size.K, 1);
    }

    // For each writing token j forwards through the readers i, with `key` = D_ij k_j, then backwards, with `query` the
    // sum over readers i' >= i of D_i'i q_i' dB_i'j: what g_i scales is their product.
    void grads_per_channel(int chunk_index) {
        const Chunk<T, VECTOR>& c = chunk[chunk_index];
        channel_products(states[chunk_index]);
        for (int64_t m = 0; m < size.K; m += LANES<T>) {
            Vec<T> q[C], k[C], a[C], to_q[C], to_g[C] = {}, key[C];
            for (int t = 0; t < C; t++) {
                int64_t at = t * size.K + m;
                q[t] = vec(c.q + at), k[t] = vec(c.k + at), a[t] = vec(c.a + at);
                to_q[t] = vec(c.grown + at) * vec(dq + at) + db[t][t] * k[t];
            }
            Vec<T> written = vec(through + m) * vec(c.whole + m);  // from before the chunk, by token t's time
            for (int t = 0; t < C; t++) {
                to_g[t] += written;
                written += k[t] * vec(c.left + t * size.K + m) * vec(dk + t * size.K + m);
            }
            Vec<T> read = {};
            for (int t = C - 1; t >= 0; t--) {
                read += q[t] * vec(c.grown + t * size.K + m) * vec(dq + t * size.K + m);
                to_g[t] += read;
            }
            for (int j = 0; j < C; j++) {
                Vec<T> decayed = k[j], query = {};
                for (int i = j + 1; i < C; i++) {
                    key[i] = decayed *= a[i];
                    to_q[i] += db[i][j] * decayed;
                }
                for (int i = C - 1; i > j; i--) {
                    query += q[i] * db[i][j];
                    to_g[i] += query * key[i];
                    query *= a[i];
                }
                int64_t at = j * size.K + m;
                vec(dk + at) = vec(c.left + at) * vec(dk + at) + db[j][j] * q[j] + query;
            }
            for (int t = 0; t < C; t++) vec(dq + t * size.K + m) = to_q[t], vec(dg + t * size.K + m) = to_g[t];
        }
    }

    void channel_products(const T* state) {
        for (int64_t m = 0; m < size.K; m++) {
            Vec<T> sum = {};
            for (int64_t n = 0; n < size.V; n += LANES<T>)
                sum += vec(state + m * size.ldv + n) * vec(dstate + m * size.ldv + n);
            T total = 0;
            for (int n = 0; n < LANES<T>; n++) total += sum[n];
            through[m] = total;
        }
    }
};

template <class T, class In>
using VectorForward = Forward<T, In, true>;
template <class T, class In>
using HeadForward = Forward<T, In, false>;
template <class T, class In>
using VectorBackward = Backward<T, In, true>;
template <class T, class In>
using HeadBackward = Backward<T, In, false>;

}  // namespace
}  // namespace hybridlm

using namespace hybridlm;

extern "C" void hybridlm_gla_vector_forward(const Call* call) {
    typed<ForwardArguments>(call, [](const auto& x) { for_each_head<VectorForward>(x); });
}

extern "C" void hybridlm_gla_head_forward(const Call* call) {
    typed<ForwardArguments>(call, [](const auto& x) { for_each_head<HeadForward>(x); });
}

extern "C" void hybridlm_gla_vector_backward(const Call* call) {
    typed<BackwardArguments>(call, [](const auto& x) { for_each_head<VectorBackward>(x); });
}

extern "C" void hybridlm_gla_head_backward(const Call* call) {
    typed<BackwardArguments>(call, [](const auto& x) { for_each_head<HeadBackward>(x); });
}
