/* What a decode step of float32 does on a CPU beside its products. The functions are called, with
 * contiguous memory, by engine/kernels/native_kernels.py, engine/attention/native_attention.py and
 * engine/sampling/grammar_masks.py.
 *
 * Every element of a result is summed in one order, whatever the number of rows, of sequences and
 * of threads: a row's bits are the same alone and in company. NaN and infinity go their way as in
 * torch: compile without -ffinite-math-only and -fassociative-math.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#define UNROLL _Pragma("GCC unroll 8")

typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef float f8_unaligned __attribute__((vector_size(32), aligned(4), may_alias));

/* What stays in 16 vector registers: ROWS * COLUMNS sums, ROWS inputs and a weight. */
enum { ROWS = 3, COLUMNS = 4, LANES = 8 };
/* Keys that attention takes at a time: at most so many, and so many bytes of all heads'. With the
 * values, and the next ones that memory brings meanwhile, they fit into a core's own cache. */
enum { KEYS = 64, CACHED_BYTES = 1 << 15 };

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (i4){__VA_ARGS__})
#endif

INLINE f8 load(const float *from) { return *(const f8_unaligned *)from; }

/* Compilers would load anew for every use, and there are fewer load units than these loops need. */
INLINE f8 load_once(const float *from) {
    f8 values = load(from);
#if defined(__AVX__)
    __asm__("" : "+x"(values));
#endif
    return values;
}

INLINE void store(float *to, f8 values) { *(f8_unaligned *)to = values; }

/* `count` < LANES numbers, then zeros. */
INLINE f8 load_some(const float *from, ptrdiff_t count) {
    f8 values = {0};
    memcpy(&values, from, count * sizeof(float));
    return values;
}

INLINE f8 load_at(const float *from, ptrdiff_t i, ptrdiff_t size) {
    return i + LANES <= size ? load(from + i) : load_some(from + i, size - i);
}

INLINE void store_at(float *to, ptrdiff_t i, ptrdiff_t size, f8 values) {
    if (i + LANES <= size)
        store(to + i, values);
    else
        memcpy(to + i, &values, (size - i) * sizeof(float));
}

INLINE f8 select8(i8 mask, f8 yes, f8 no) { return (f8)((mask & (i8)yes) | (~mask & (i8)no)); }

INLINE f4 halves(f8 v) {
    f4 half[2];
    memcpy(half, &v, sizeof v);
    return half[0] + half[1];
}

INLINE float sum(f8 v) {
    f4 s = halves(v);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* The sums of four vectors. */
INLINE f4 sums(const f8 v[4]) {
    f4 a = halves(v[0]), b = halves(v[1]), c = halves(v[2]), d = halves(v[3]);
    f4 ab = SHUFFLE(a, b, 0, 4, 1, 5) + SHUFFLE(a, b, 2, 6, 3, 7);
    f4 cd = SHUFFLE(c, d, 0, 4, 1, 5) + SHUFFLE(c, d, 2, 6, 3, 7);
    return SHUFFLE(ab, cd, 0, 1, 4, 5) + SHUFFLE(ab, cd, 2, 3, 6, 7);
}

/* Cephes' expf. Below -87 it is 0, above 88 it stays what it is there; NaN stays NaN. */
INLINE f8 exp8(f8 x) {
    const f8 zero = {0}, low = zero - 87.0f, high = zero + 88.0f;
    const f8 round = zero + 12582912.0f; /* 1.5 * 2^23: the sum's last bits are an integer */
    i8 is_zero = x < low;
    x = select8(is_zero, low, x);
    x = select8(x > high, high, x);
    f8 shifted = x * 1.44269504f + round;
    f8 power = shifted - round;
    f8 rest = x - power * 0.693359375f - power * -2.12194440e-4f;
    f8 p = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    f8 scale = (f8)(((i8)shifted - (i8)round + 127) << 23);
    return select8(is_zero, zero, p * scale);
}

/* Cephes' tanhf. */
INLINE f8 tanh8(f8 x) {
    f8 square = x * x;
    f8 p = square * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * square + -5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square + -3.33332819422e-1f;
    f8 near_zero = p * square * x + x;
    f8 far = 1.0f - 2.0f / (exp8(x + x) + 1.0f);
    return select8(square < 0.390625f, near_zero, far);
}

INLINE void add_products(const int rows, f8 (*total)[COLUMNS], const float *x,
                         ptrdiff_t x_stride, const float *const *w, ptrdiff_t i) {
    f8 inputs[ROWS];
    UNROLL for (int r = 0; r < rows; r++) inputs[r] = load(x + r * x_stride + i);
    UNROLL for (int c = 0; c < COLUMNS; c++) {
        f8 weight = load_once(w[c] + i);
        UNROLL for (int r = 0; r < rows; r++) total[r][c] += inputs[r] * weight;
    }
}

/* result[r] = x[r] · w[0..3] for `rows` rows of x. Meanwhile asks memory for the rows of `next`,
 * `size` each. */
INLINE void dots(const int rows, f4 *result, const float *x,
                 ptrdiff_t x_stride, const float *const *w, ptrdiff_t size,
                 const float *const *next) {
    f8 total[ROWS][COLUMNS] = {0};
    ptrdiff_t i = 0;
    for (; i + 2 * LANES <= size; i += 2 * LANES) {
        UNROLL for (int c = 0; c < COLUMNS; c++) __builtin_prefetch(next[c] + i);
        add_products(rows, total, x, x_stride, w, i);
        add_products(rows, total, x, x_stride, w, i + LANES);
    }
    if (i + LANES <= size) {
        add_products(rows, total, x, x_stride, w, i);
        i += LANES;
    }
    if (i < size)
        UNROLL for (int c = 0; c < COLUMNS; c++)
            UNROLL for (int r = 0; r < rows; r++)
                total[r][c] += load_some(x + r * x_stride + i, size - i) *
                               load_some(w[c] + i, size - i);
    UNROLL for (int r = 0; r < rows; r++) result[r] = sums(total[r]);
}

static void norm_row(float *y, const float *x, const float *weight, ptrdiff_t size, float eps) {
    f8 squares[2] = {0};
    ptrdiff_t i = 0;
    for (; i + 2 * LANES <= size; i += 2 * LANES)
        for (int v = 0; v < 2; v++)
            squares[v] += load(x + i + v * LANES) * load(x + i + v * LANES);
    for (; i < size; i += LANES)
        squares[0] += load_at(x, i, size) * load_at(x, i, size);
    float scale = 1.0f / sqrtf(sum(squares[0] + squares[1]) / size + eps);
    for (i = 0; i < size; i += LANES)
        store_at(y, i, size, load_at(x, i, size) * scale * load_at(weight, i, size));
}

/* y [rows, size]. */
EXPORT void rms_norm(float *y, const float *x, const float *weight, ptrdiff_t num_rows,
                     ptrdiff_t size, float eps) {
    for (ptrdiff_t r = 0; r < num_rows; r++)
        norm_row(y + r * size, x + r * size, weight, size, eps);
}

/* residual [rows, size] += x, and its norm. */
EXPORT void add_rms_norm(float *y, float *residual, const float *x, const float *weight,
                         ptrdiff_t num_rows, ptrdiff_t size, float eps) {
    for (ptrdiff_t r = 0; r < num_rows; r++) {
        float *sum_row = residual + r * size;
        for (ptrdiff_t i = 0; i < size; i += LANES)
            store_at(sum_row, i, size, load_at(sum_row, i, size) + load_at(x + r * size, i, size));
        norm_row(y + r * size, sum_row, weight, size, eps);
    }
}

INLINE f8 silu(f8 x) { return x / (exp8(-x) + 1.0f); }

INLINE f8 gelu_tanh(f8 x) {
    return 0.5f * x * (tanh8((x + 0.044715f * x * x * x) * 0.7978845608028654f) + 1.0f);
}

/* y [rows, inner] = activation(first half) * second half of gate_up [rows, 2 * inner]. */
EXPORT void activate_and_mul(float *y, const float *gate_up, ptrdiff_t num_rows, ptrdiff_t inner,
                             int is_gelu) {
    for (ptrdiff_t r = 0; r < num_rows; r++) {
        const float *gate = gate_up + r * 2 * inner, *up = gate + inner;
        for (ptrdiff_t i = 0; i < inner; i += LANES) {
            f8 x = load_at(gate, i, inner);
            store_at(y + r * inner, i, inner,
                     (is_gelu ? gelu_tanh(x) : silu(x)) * load_at(up, i, inner));
        }
    }
}

/* Turns the first `rotary_dim` numbers of a head; the first half of `sin` is negated. */
static void rotate(float *restrict head, const float *restrict cos, const float *restrict sin,
                   ptrdiff_t rotary_dim) {
    ptrdiff_t half = rotary_dim / 2;
    float *restrict second = head + half;
    for (ptrdiff_t i = 0; i < half; i++) {
        float a = head[i], b = second[i];
        head[i] = a * cos[i] + b * sin[i];
        second[i] = b * cos[half + i] + a * sin[half + i];
    }
}

/* Rows of qkv [tokens, (heads + 2 * kv_heads) * head_dim] into query [tokens, heads, head_dim] and
 * into `slots` of one layer of the pool, normed if the norms' weights are not null. */
EXPORT void split_heads(float *query, float *pool, const float *qkv, const int64_t *slots,
                        const float *cos, const float *sin, const float *query_norm,
                        const float *key_norm, float eps, ptrdiff_t num_tokens,
                        ptrdiff_t num_heads, ptrdiff_t num_kv_heads, ptrdiff_t head_dim,
                        ptrdiff_t rotary_dim, ptrdiff_t page_size) {
    ptrdiff_t kv_size = num_kv_heads * head_dim;
    for (ptrdiff_t t = 0; t < num_tokens; t++) {
        const float *from = qkv + t * (num_heads * head_dim + 2 * kv_size);
        float *keys = pool + slots[t] * kv_size;
        for (ptrdiff_t h = 0; h < num_heads + num_kv_heads; h++, from += head_dim) {
            int is_query = h < num_heads;
            float *to = is_query ? query + (t * num_heads + h) * head_dim
                                 : keys + (h - num_heads) * head_dim;
            if (query_norm)
                norm_row(to, from, is_query ? query_norm : key_norm, head_dim, eps);
            else
                memcpy(to, from, head_dim * sizeof(float));
            rotate(to, cos + t * rotary_dim, sin + t * rotary_dim, rotary_dim);
        }
        memcpy(keys + page_size * kv_size, from, kv_size * sizeof(float));
    }
}

/* One layer of the pool [pages, 2, page_size, kv_heads, head_dim], and how to attend to it. */
typedef struct {
    const float *pool;
    ptrdiff_t page_size, num_kv_heads, head_dim, group; /* group: query heads of a KV head */
    ptrdiff_t window;                                   /* 0: none */
    ptrdiff_t block;                                    /* keys at a time, at most KEYS */
    float scale, softcap;                               /* softcap 0: none */
} Form;

/* Scores of up to KEYS keys become weights exp(score - top), and 0 up to a full vector; returns by
 * how much what was summed with the top before shrinks. */
INLINE float weigh(float *scores, ptrdiff_t count, const Form *form, float *top, float *total) {
    f8 highest = (f8){0} - INFINITY, added = {0};
    ptrdiff_t end = (count + LANES - 1) / LANES * LANES;
    for (ptrdiff_t i = 0; i < end; i += LANES) {
        f8 score = load(scores + i) * form->scale;
        if (form->softcap != 0.0f)
            score = tanh8(score / form->softcap) * form->softcap;
        store(scores + i, score);
    }
    for (ptrdiff_t i = count; i < end; i++)
        scores[i] = -INFINITY;
    for (ptrdiff_t i = 0; i < end; i += LANES)
        highest = select8(load(scores + i) > highest, load(scores + i), highest);
    float new_top = *top;
    for (int i = 0; i < LANES; i++)
        new_top = highest[i] > new_top ? highest[i] : new_top;
    float base = new_top == -INFINITY ? 0.0f : new_top;
    for (ptrdiff_t i = 0; i < end; i += LANES) {
        f8 weight = exp8(load(scores + i) - base);
        store(scores + i, weight);
        added += weight;
    }
    float shrunk = *top == new_top ? 1.0f : expf(*top - new_top);
    *top = new_top;
    *total = *total * shrunk + sum(added);
    return shrunk;
}

/* Where keys and values of up to KEYS tokens are, of KV head 0; behind them the last one again. */
typedef struct {
    ptrdiff_t count;
    const float *keys[KEYS], *values[KEYS];
} Block;

/* sums[r][offset..offset + vectors * 8) = its `shrunk` self + weighed values, for `rows` query
 * heads. Meanwhile asks memory for the next block's keys. */
INLINE void add_values(const int rows, const int vectors, float *sums, ptrdiff_t head_dim,
                       ptrdiff_t offset, ptrdiff_t head, const Block *block, const Block *next,
                       const float (*weights)[KEYS], const float *shrunk) {
    f8 total[ROWS][4];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++) total[r][v] =
        load_at(sums + r * head_dim, offset + v * LANES, head_dim) * shrunk[r];
    for (ptrdiff_t t = 0; t < block->count; t++) {
        const float *values = block->values[t] + head;
        UNROLL for (int v = 0; v < vectors; v += 2)
            __builtin_prefetch(next->keys[t] + head + offset + v * LANES);
        UNROLL for (int v = 0; v < vectors; v++) {
            f8 value = vectors > 1 ? load_once(values + offset + v * LANES)
                                   : load_at(values, offset, head_dim);
            UNROLL for (int r = 0; r < rows; r++) total[r][v] += value * weights[r][t];
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++)
        store_at(sums + r * head_dim, offset + v * LANES, head_dim, total[r][v]);
}

/* Up to ROWS query heads over a block, whose KV head begins `head` numbers into each token: the
 * sums in `out`, `top` and `total` go on. */
INLINE void attend_block(const int rows, float *out, const float *query, ptrdiff_t head,
                         const Block *block, const Block *next, const Form *form, float *top,
                         float *total) {
    float scores[ROWS][KEYS] = {0}, shrunk[ROWS];
    ptrdiff_t head_dim = form->head_dim, d = 0;
    for (ptrdiff_t t = 0; t < block->count; t += COLUMNS) {
        const float *keys[COLUMNS], *values[COLUMNS];
        f4 result[ROWS];
        UNROLL for (int c = 0; c < COLUMNS; c++) {
            keys[c] = block->keys[t + c] + head;
            values[c] = block->values[t + c] + head;
        }
        dots(rows, result, query, head_dim, keys, head_dim, values);
        for (int r = 0; r < rows; r++)
            memcpy(scores[r] + t, &result[r], sizeof(f4));
    }
    for (int r = 0; r < rows; r++)
        shrunk[r] = weigh(scores[r], block->count, form, top + r, total + r);
    const float(*weights)[KEYS] = (const float(*)[KEYS])scores;
    for (; d + 4 * LANES <= head_dim; d += 4 * LANES)
        add_values(rows, 4, out, head_dim, d, head, block, next, weights, shrunk);
    for (; d < head_dim; d += LANES)
        add_values(rows, 1, out, head_dim, d, head, block, next, weights, shrunk);
}

/* The block at token `begin` of a context. */
static void find_block(Block *block, ptrdiff_t begin, ptrdiff_t length, const int32_t *pages,
                       const Form *form) {
    ptrdiff_t token_size = form->num_kv_heads * form->head_dim, t = 0;
    ptrdiff_t page = begin / form->page_size, in_page = begin % form->page_size;
    block->count = length - begin < form->block ? length - begin : form->block;
    for (; t < block->count; t++) {
        ptrdiff_t row = 2 * form->page_size * pages[page] + in_page;
        block->keys[t] = form->pool + row * token_size;
        block->values[t] = block->keys[t] + form->page_size * token_size;
        if (++in_page == form->page_size)
            in_page = 0, page++;
    }
    for (; t < KEYS; t++)
        block->keys[t] = block->keys[t - 1], block->values[t] = block->values[t - 1];
}

/* The query heads [begin, end) of one sequence over its pages: query and out [heads, head_dim].
 * Block by block for all heads, as a token's lie side by side in memory. */
static void attend(float *out, const float *query, const int32_t *pages, ptrdiff_t length,
                   ptrdiff_t begin, ptrdiff_t end, const Form *form) {
    ptrdiff_t first = form->window && form->window < length ? length - form->window : 0;
    ptrdiff_t head_dim = form->head_dim, group = form->group;
    float top[end], total[end];
    Block blocks[2], *block = blocks, *next = blocks + 1;
    memset(out + begin * head_dim, 0, (end - begin) * head_dim * sizeof(float));
    for (ptrdiff_t h = begin; h < end; h++)
        top[h] = -INFINITY, total[h] = 0.0f;
    find_block(next, first, length, pages, form);
    for (ptrdiff_t token = first; token < length; token += form->block) {
        Block *done = block;
        block = next;
        next = token + form->block < length ? done : block;
        if (next != block)
            find_block(next, token + form->block, length, pages, form);
        for (ptrdiff_t h = begin, count; h < end; h += count) {
            float *o = out + h * head_dim;
            const float *q = query + h * head_dim;
            ptrdiff_t head = h / group * head_dim;
            count = group - h % group < ROWS ? group - h % group : ROWS;
            switch (count) {
            case 1: attend_block(1, o, q, head, block, next, form, top + h, total + h); break;
            case 2: attend_block(2, o, q, head, block, next, form, top + h, total + h); break;
            default: attend_block(3, o, q, head, block, next, form, top + h, total + h);
            }
        }
    }
    for (ptrdiff_t h = begin; h < end; h++)
        for (ptrdiff_t d = 0; d < head_dim; d++)
            out[h * head_dim + d] /= total[h];
}

/* query and out [slices, heads, head_dim]: the last token of each slice over its pages, which are
 * in a row of `page_tables` [slices, most pages]; `lengths` [slices] are of the contexts. */
EXPORT void attention(float *out, const float *query, const float *pool,
                      const int32_t *page_tables, const int32_t *lengths, ptrdiff_t num_slices,
                      ptrdiff_t most_pages, ptrdiff_t page_size, ptrdiff_t num_kv_heads,
                      ptrdiff_t group, ptrdiff_t head_dim, ptrdiff_t window, float scale,
                      float softcap, int threads) {
    ptrdiff_t block = CACHED_BYTES / (ptrdiff_t)sizeof(float) / (num_kv_heads * head_dim);
    block = block < LANES ? LANES : block < KEYS ? block / LANES * LANES : KEYS;
    const Form form = {pool,   page_size, num_kv_heads, head_dim, group,
                       window, block,     scale,        softcap};
    ptrdiff_t num_heads = num_kv_heads * group;
    if (threads == 1) {
        for (ptrdiff_t i = 0; i < num_slices; i++)
            attend(out + i * num_heads * head_dim, query + i * num_heads * head_dim,
                   page_tables + i * most_pages, lengths[i], 0, num_heads, &form);
        return;
    }
    ptrdiff_t parts = num_slices < 4 * threads ? num_kv_heads : 1; /* enough to share out */
    ptrdiff_t part_heads = num_heads / parts;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (ptrdiff_t p = 0; p < num_slices * parts; p++) {
        ptrdiff_t i = p / parts, begin = p % parts * part_heads;
        attend(out + i * num_heads * head_dim, query + i * num_heads * head_dim,
               page_tables + i * most_pages, lengths[i], begin, begin + part_heads, &form);
    }
}

/* 32 numbers: -inf where `bits` has none. */
INLINE void forbid_word(float *logits, uint32_t bits) {
    const i8 places = {1, 2, 4, 8, 16, 32, 64, 128};
    const f8 never = (f8){0} - INFINITY;
    for (int i = 0; i < 32; i += LANES) {
        i8 byte = (i8){0} + (int32_t)(bits >> i & 255);
        store(logits + i, select8((byte & places) != 0, load(logits + i), never));
    }
}

/* logits[rows[r]][token] = -inf unless bit token % 32 of bits[r][token / 32] is set; logits
 * [.., stride], bits [num_rows, num_words]. What a row allows in full is not even read. */
EXPORT void forbid(float *logits, ptrdiff_t stride, ptrdiff_t vocab_size, const int64_t *rows,
                   const uint32_t *bits, ptrdiff_t num_rows, ptrdiff_t num_words) {
    for (ptrdiff_t r = 0; r < num_rows; r++, bits += num_words) {
        float *row = logits + rows[r] * stride;
        ptrdiff_t word = 0, token = 0;
        for (; token + 32 <= vocab_size; token += 32, word++) {
            uint32_t allowed = word < num_words ? bits[word] : 0;
            if (allowed == 0)
                for (int i = 0; i < 32; i += LANES)
                    store(row + token + i, (f8){0} - INFINITY);
            else if (allowed != UINT32_MAX)
                forbid_word(row + token, allowed);
        }
        for (uint32_t allowed = word < num_words ? bits[word] : 0; token < vocab_size; token++)
            if (!(allowed >> token % 32 & 1))
                row[token] = -INFINITY;
    }
}
