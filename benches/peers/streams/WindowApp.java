// The windowed query as a Kafka Streams program: JSON in, count, sum, min, max and mean per service and window out.
//
// Its fastest form as far as we found one; README.md says which choices were tried. Settings come as KEY=VALUE
// arguments: those that begin with "peers." are ours, all others are Kafka Streams' own.

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.EmitStrategy;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.Suppressed;
import org.apache.kafka.streams.kstream.Suppressed.BufferConfig;
import org.apache.kafka.streams.kstream.TimeWindowedKStream;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowBytesStoreSupplier;
import org.apache.kafka.streams.state.WindowStore;

public final class WindowApp {
    private static final JsonFactory JSON = new JsonFactory();

    public static void main(String[] args) {
        Properties ours = new Properties();
        Properties streams = new Properties();
        for (String arg : args) {
            String[] pair = arg.split("=", 2);
            (pair[0].startsWith("peers.") ? ours : streams).setProperty(pair[0], pair[1]);
        }
        KafkaStreams app = new KafkaStreams(topology(ours, streams), streams);
        app.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        app.setStateListener((now, before) -> {
            if (now == KafkaStreams.State.ERROR) {
                Runtime.getRuntime().halt(1);
            }
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> app.close(Duration.ofSeconds(30))));
        app.start();
    }

    private static Topology topology(Properties ours, Properties streams) {
        Duration width = Duration.ofSeconds(Long.parseLong(ours.getProperty("peers.width_s")));
        Duration slide = Duration.ofSeconds(Long.parseLong(ours.getProperty("peers.slide_s")));
        Duration grace = Duration.ofSeconds(Long.parseLong(ours.getProperty("peers.lateness_s")));
        String wanted = ours.getProperty("peers.name");
        boolean suppress = ours.getProperty("peers.emit").equals("suppress");

        StreamsBuilder builder = new StreamsBuilder();
        Consumed<String, Sample> consumed =
                Consumed.with(Serdes.String(), SAMPLES).withTimestampExtractor(WindowApp::eventTime);
        // The topic is keyed by service, so no repartition topic is needed: much less work than groupBy would be.
        TimeWindowedKStream<String, Sample> windowed = builder.stream(ours.getProperty("peers.input"), consumed)
                .filter((service, sample) -> wanted.equals(sample.name))
                .groupByKey(Grouped.with(Serdes.String(), SAMPLES))
                .windowedBy(TimeWindows.ofSizeAndGrace(width, grace).advanceBy(slide));
        if (!suppress) {
            windowed = windowed.emitStrategy(EmitStrategy.onWindowClose());
        }
        var stats = windowed.aggregate(Stats::new, (service, sample, sum) -> sum.add(sample.value), store(ours, width));
        if (suppress) {
            stats = stats.suppress(Suppressed.untilWindowCloses(BufferConfig.unbounded()));
        }
        KStream<String, byte[]> rows = stats.toStream().map(WindowApp::row);
        rows.to(ours.getProperty("peers.output"), Produced.with(Serdes.String(), Serdes.ByteArray()));
        return builder.build(streams);
    }

    private static long eventTime(ConsumerRecord<Object, Object> record, long before) {
        return ((Sample) record.value()).ts;
    }

    private static Materialized<String, Stats, WindowStore<Bytes, byte[]>> store(Properties ours, Duration width) {
        Duration kept = Duration.ofSeconds(Long.parseLong(ours.getProperty("peers.kept_s")));
        WindowBytesStoreSupplier supplier = ours.getProperty("peers.store").equals("memory")
                ? Stores.inMemoryWindowStore("stats", kept, width, false)
                : Stores.persistentTimestampedWindowStore("stats", kept, width, false);
        Materialized<String, Stats, WindowStore<Bytes, byte[]>> store = Materialized.as(supplier);
        store.withKeySerde(Serdes.String()).withValueSerde(STATS);
        return ours.getProperty("peers.cache").equals("on") ? store.withCachingEnabled() : store.withCachingDisabled();
    }

    private static KeyValue<String, byte[]> row(Windowed<String> key, Stats stats) {
        ByteArrayOutputStream out = new ByteArrayOutputStream(192);
        try (JsonGenerator json = JSON.createGenerator(out)) {
            json.writeStartObject();
            json.writeNumberField("window_start", key.window().start());
            json.writeNumberField("window_end", key.window().end());
            json.writeStringField("service", key.key());
            json.writeNumberField("n", stats.n);
            json.writeNumberField("total", stats.total);
            json.writeNumberField("least", stats.least);
            json.writeNumberField("most", stats.most);
            json.writeNumberField("mean", stats.total / stats.n);
            json.writeEndObject();
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return new KeyValue<>(key.key(), out.toByteArray());
    }

    /** What the query needs of a record. The labels are skipped while parsing: the service is the record's key. */
    private static final class Sample {
        String name;
        double value;
        long ts;
    }

    private static final class Stats {
        long n;
        double total;
        double least = Double.POSITIVE_INFINITY;
        double most = Double.NEGATIVE_INFINITY;

        Stats add(double value) {
            n++;
            total += value;
            least = Math.min(least, value);
            most = Math.max(most, value);
            return this;
        }
    }

    private static Sample parse(byte[] bytes) {
        Sample sample = new Sample();
        try (JsonParser json = JSON.createParser(bytes)) {
            json.nextToken();
            while (json.nextToken() == JsonToken.FIELD_NAME) {
                String field = json.currentName();
                json.nextToken();
                switch (field) {
                    case "name" -> sample.name = json.getText();
                    case "value" -> sample.value = json.getDoubleValue();
                    case "ts" -> sample.ts = json.getLongValue();
                    default -> json.skipChildren();
                }
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return sample;
    }

    private static final Serde<Sample> SAMPLES = Serdes.serdeFrom(
            (Serializer<Sample>) (topic, sample) -> {
                throw new IllegalStateException("samples are never written: no repartition, no changelog of them");
            },
            (Deserializer<Sample>) (topic, bytes) -> parse(bytes));

    private static final Serde<Stats> STATS = Serdes.serdeFrom(
            (Serializer<Stats>) (topic, stats) -> stats == null ? null : ByteBuffer.allocate(32)
                    .putLong(stats.n).putDouble(stats.total).putDouble(stats.least).putDouble(stats.most).array(),
            (Deserializer<Stats>) (topic, bytes) -> {
                if (bytes == null) {
                    return null;
                }
                ByteBuffer buffer = ByteBuffer.wrap(bytes);
                Stats stats = new Stats();
                stats.n = buffer.getLong();
                stats.total = buffer.getDouble();
                stats.least = buffer.getDouble();
                stats.most = buffer.getDouble();
                return stats;
            });
}
