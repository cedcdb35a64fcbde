// Runs a file of Flink SQL as one streaming job in this JVM: job manager, task manager and job together.
//
// Arguments: the file of statements, then settings of Flink as KEY=VALUE. `EXPLAIN` in front of them prints the plan
// instead of running.

import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.TableEnvironment;
import org.apache.flink.table.api.TableResult;

public final class WindowJob {
    public static void main(String[] args) throws Exception {
        int from = args[0].equals("EXPLAIN") ? 1 : 0;
        Configuration settings = new Configuration();
        for (int n = from + 1; n < args.length; n++) {
            String[] pair = args[n].split("=", 2);
            settings.setString(pair[0], pair[1]);
        }
        TableEnvironment tables = TableEnvironment.create(
                EnvironmentSettings.newInstance().inStreamingMode().withConfiguration(settings).build());
        TableResult job = null;
        for (String statement : Files.readString(Path.of(args[from])).split(";")) {
            boolean insert = statement.lines().anyMatch(line -> line.startsWith("INSERT"));
            if (insert && from == 1) {
                System.out.println(tables.explainSql(statement));
            } else if (!statement.isBlank()) {
                job = tables.executeSql(statement);
            }
        }
        if (from == 0) {
            job.await();
        }
    }
}
