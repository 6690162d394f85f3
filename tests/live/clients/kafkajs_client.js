// KafkaJS: admin and producer. It has no consumer without a group, so what it wrote is read by other clients
// (kafkajs_client.py, which starts this).
//
// Usage: node kafkajs_client.js BOOTSTRAP RUN FIRST_TIMESTAMP. Prints one line per check, then DONE with what was written.

const modules = process.env.LIVE_NODE_MODULES
const { Kafka, CompressionTypes, CompressionCodecs, logLevel, ConfigResourceTypes } = require(`${modules}/kafkajs`)
const snappy = require(`${modules}/snappyjs`)
const lz4 = require(`${modules}/lz4js`)
const { ZstdCodec } = require(`${modules}/zstd-codec`)

const [bootstrap, run, first] = process.argv.slice(2)
const kafka = new Kafka({ clientId: 'kafkajs', brokers: [bootstrap], logLevel: logLevel.NOTHING, retry: { retries: 3 } })

// Codecs are plugged in. The framing that Kafka's own Java client writes for snappy is optional; every reader takes raw.
CompressionCodecs[CompressionTypes.Snappy] = () => ({
  compress: async (encoder) => Buffer.from(snappy.compress(encoder.buffer)),
  decompress: async (buffer) => Buffer.from(snappy.uncompress(buffer)),
})
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async (encoder) => Buffer.from(lz4.compress(encoder.buffer)),
  decompress: async (buffer) => Buffer.from(lz4.decompress(buffer)),
})
const zstd = new Promise((resolve) => ZstdCodec.run((codec) => resolve(new codec.Simple())))
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async (encoder) => Buffer.from((await zstd).compress(encoder.buffer)),
  decompress: async (buffer) => Buffer.from((await zstd).decompress(buffer)),
})

let failed = 0
async function check(what, body) {
  try {
    await body()
    console.log(`ok      kafkajs: ${what}`)
  } catch (error) {
    failed += 1
    console.log(`FAILED  kafkajs: ${what}: ${error.name}: ${error.message}`)
    console.error(error)
  }
}

function equal(found, expected) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(expected)]
  if (a !== b) throw new Error(`found ${a}, expected ${b}`)
}

async function errorOf(call) {
  try {
    await call()
  } catch (error) {
    return `${error.type || ''} ${error.message} ${(error.errors || []).map((e) => e.type).join(' ')}`
  }
  throw new Error('no error')
}

async function waitFor(look) {
  while (!(await look())) await new Promise((resolve) => setTimeout(resolve, 20))
}

const FIRST_TIMESTAMP = Number(first)
// The records of common.py, so that the reader knows what to expect.
function messages(count, first = 0) {
  return Array.from({ length: count }, (_, index) => {
    const n = first + index
    const key = n % 11 === 10 ? null : `key-${n % 17}`
    const value = key !== null && n % 7 === 6 ? null : `record ${n} of this run, `.repeat(30)
    const headers = n % 3 === 0 ? { n: [String(n), 'twice'], empty: '' } : {}
    return { key, value, headers, timestamp: String(FIRST_TIMESTAMP + n * 1000), partition: 0 }
  })
}

async function main() {
  const admin = kafka.admin()
  await admin.connect()
  const written = {}
  const topic = async (name, numPartitions = 1, configEntries = []) => {
    const full = `kafkajs-${run}-${name}`
    await admin.createTopics({ topics: [{ topic: full, numPartitions, replicationFactor: 1, configEntries }], timeout: 60000 })
    return full
  }
  const produce = async (options, batches) => {
    const producer = kafka.producer({ maxInFlightRequests: options.idempotent ? 1 : 5, idempotent: options.idempotent })
    await producer.connect()
    for (const batch of batches) await producer.send(batch)
    await producer.disconnect()
  }

  await check('create, describe and delete a topic', async () => {
    const name = await topic('lifecycle', 5)
    const metadata = await admin.fetchTopicMetadata({ topics: [name] })
    equal(metadata.topics[0].partitions.map((p) => p.partitionId).sort(), [0, 1, 2, 3, 4])
    // KafkaJS answers false for a topic that exists.
    equal(await admin.createTopics({ topics: [{ topic: name }] }), false)
    equal((await admin.listTopics()).includes(name), true)
    await admin.deleteTopics({ topics: [name], timeout: 60000 })
    await waitFor(async () => !(await admin.listTopics()).includes(name))
    const error = await errorOf(() => admin.deleteTopics({ topics: [name] }))
    // KafkaJS wraps the error after its retries and keeps only the words of UNKNOWN_TOPIC_OR_PARTITION.
    if (!error.includes('does not host this topic-partition')) throw new Error(error)
  })

  for (const acks of [0, 1, -1]) {
    await check(`produce with acks ${acks}`, async () => {
      const name = await topic(`acks-${acks}`)
      await produce({}, [{ topic: name, acks, messages: messages(200) }, { topic: name, acks, messages: messages(200, 200) }])
      await waitFor(async () => (await admin.fetchTopicOffsets(name))[0].high === '400')
      written[name] = { count: 400, codec: 'none' }
    })
  }

  await check('produce with an idempotent producer', async () => {
    const name = await topic('idempotent')
    const batches = [0, 100, 200].map((first) => ({ topic: name, acks: -1, messages: messages(100, first) }))
    await produce({ idempotent: true }, batches)
    written[name] = { count: 300, codec: 'none', idempotent: true }
  })

  const codecs = { gzip: CompressionTypes.GZIP, snappy: CompressionTypes.Snappy, lz4: CompressionTypes.LZ4, zstd: CompressionTypes.ZSTD }
  for (const [codec, compression] of Object.entries(codecs)) {
    await check(`produce with codec ${codec}`, async () => {
      const name = await topic(`codec-${codec}`)
      await produce({}, [{ topic: name, compression, messages: messages(300) }])
      written[name] = { count: 300, codec }
    })
  }

  await check('records of 1 MiB', async () => {
    const name = await topic('large', 1, [{ name: 'max.message.bytes', value: String(4 << 20) }])
    const large = Array.from({ length: 3 }, (_, n) => ({ value: Buffer.alloc(1 << 20, n), partition: 0 }))
    for (const message of large) await produce({}, [{ topic: name, messages: [message] }])
    equal((await admin.fetchTopicOffsets(name))[0].high, '3')
    const tooLarge = { topic: name, messages: [{ value: Buffer.alloc(5 << 20), partition: 0 }] }
    const error = await errorOf(() => produce({}, [tooLarge]))
    if (!error.includes('MESSAGE_TOO_LARGE')) throw new Error(error)
  })

  await check('offsets by earliest, latest and timestamp', async () => {
    const name = await topic('positions')
    for (let first = 0; first < 300; first += 50) await produce({}, [{ topic: name, messages: messages(50, first) }])
    const [offsets] = await admin.fetchTopicOffsets(name)
    equal([offsets.low, offsets.high], ['0', '300'])
    const at = async (n) => (await admin.fetchTopicOffsetsByTimestamp(name, FIRST_TIMESTAMP + n * 1000))[0].offset
    equal([await at(0), await at(120)], ['0', '120'])
    // Newer than everything: KafkaJS then gives the end.
    equal(await at(300), '300')
  })

  await check('create partitions', async () => {
    const name = await topic('grown', 2)
    await admin.createPartitions({ topicPartitions: [{ topic: name, count: 6 }], timeout: 60000 })
    await waitFor(async () => (await admin.fetchTopicMetadata({ topics: [name] })).topics[0].partitions.length === 6)
  })

  await check("describe a topic's configs", async () => {
    const name = await topic('configs', 1, [{ name: 'retention.ms', value: '3600000' }])
    const resources = [{ type: ConfigResourceTypes.TOPIC, name }]
    const described = await admin.describeConfigs({ resources, includeSynonyms: false })
    const entry = described.resources[0].configEntries.find((entry) => entry.configName === 'retention.ms')
    equal(entry.configValue, '3600000')
  })

  await check('describe the cluster', async () => {
    const { brokers, controller, clusterId } = await admin.describeCluster()
    equal(brokers.map((broker) => `${broker.host}:${broker.port}`), [bootstrap])
    equal(brokers[0].nodeId, controller)
    if (!clusterId) throw new Error('a cluster has an id')
  })

  await admin.disconnect()
  console.log(`DONE ${JSON.stringify(written)}`)
  process.exit(failed ? 1 : 0)
}

main().catch((error) => {
  console.log(`FAILED  kafkajs: ${error.name}: ${error.message}`)
  process.exit(1)
})
